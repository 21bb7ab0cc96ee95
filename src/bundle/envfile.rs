//! Files of variables that a container wrote for others (`fileKeyRef`): a small part of what a shell reads.
//!
//! ```text
//! # a comment
//! NAME='value'
//!   TEXT='several
//! lines, taken as they are: $HOME, "quotes", \n'   # and a comment
//! ```
//!
//! The single quotes are required, and there is no way to write one inside. Nothing may stand between name, `=` and
//! quote. A name that occurs twice has its last value.

/// Most bytes of such a file (as kubelet).
pub const MAX_FILE: u64 = 64 * 1024;
/// Longest name in bytes (as kubelet).
const MAX_NAME: usize = 128;

/// Why a file cannot be read; lines are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Bytes that are no text.
    #[error("it is not UTF-8")]
    Encoding,
    /// A line that is neither a comment nor an assignment.
    #[error("line {0}: want NAME='value'")]
    Syntax(usize),
    /// A name that no variable has.
    #[error("line {0}: a name has 1 to 128 printable ASCII characters without blanks, quotes and '='")]
    Name(usize),
    /// A value whose end is missing.
    #[error("line {0}: the value's closing quote is missing")]
    Unclosed(usize),
    /// Text after the closing quote.
    #[error("line {0}: only a comment may follow the value")]
    Trailing(usize),
    /// A value that no process can be given.
    #[error("line {0}: the value holds a NUL byte")]
    Nul(usize),
}

/// The variables of a file in its order; a name may occur again.
///
/// # Errors
/// The first thing that is not of the format: a file that is half understood would start half a program.
pub fn parse(bytes: &[u8]) -> Result<Vec<(String, String)>, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::Encoding)?;
    let mut variables = Vec::new();
    let mut rest = text;
    let mut line = 1;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r']);
        let Some(first) = rest.chars().next() else { return Ok(variables) };
        if first == '\n' || first == '#' {
            rest = after_line(rest);
            line += 1;
            continue;
        }
        let (name, value) = rest.split_once('=').ok_or(Error::Syntax(line))?;
        // An equals sign of a later line is none of this one.
        if name.contains(['\n', '#']) {
            return Err(Error::Syntax(line));
        }
        let sound = name.bytes().all(|b| b.is_ascii_graphic() && b != b'\'' && b != b'"');
        if name.is_empty() || name.len() > MAX_NAME || !sound {
            return Err(Error::Name(line));
        }
        let value = value.strip_prefix('\'').ok_or(Error::Syntax(line))?;
        let (value, after) = value.split_once('\'').ok_or(Error::Unclosed(line))?;
        if value.contains('\0') {
            return Err(Error::Nul(line));
        }
        line += value.matches('\n').count();
        let end = after.split('\n').next().unwrap_or_default();
        let comment = end.trim_start_matches([' ', '\t', '\r']);
        // As in a shell: `'a'#b` is one word.
        let ends = comment.is_empty() || (comment.starts_with('#') && comment.len() < end.len());
        if !ends {
            return Err(Error::Trailing(line));
        }
        variables.push((name.to_owned(), value.to_owned()));
        rest = after_line(after);
        line += 1;
    }
}

fn after_line(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> String {
        match parse(text.as_bytes()) {
            Ok(list) => list.iter().map(|(n, v)| format!("{n}={v:?}")).collect::<Vec<_>>().join(" "),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn what_is_a_file_of_variables() {
        let texts = [
            "",
            "\n  \n\t# comment with = and '\n",
            "A='1'",
            "  A='1'  \r\n# x\nB='two words' # tail\nA=''",
            "TEXT='one\n# two\nthree=3'\nNEXT='$HOME \\n \"x\"'",
            "my.name-1='x'",
            "A=1",
            "A =  'x'",
            "A= 'x'",
            "A=\"x\"",
            "word",
            "word\nA='x'",
            "a word='x'",
            "='x'",
            "é='x'",
            "OK='1'\nA='1\n2\n",
            "A='1'B",
            "A='1'#x",
            "A='1\n2'\nB='3' x",
            "A='\0'",
        ];
        let got: Vec<String> = texts.iter().map(|text| format!("{text:?} -> {}", read(text))).collect();
        expect_test::expect![[r#"
            "" -> 
            "\n  \n\t# comment with = and '\n" -> 
            "A='1'" -> A="1"
            "  A='1'  \r\n# x\nB='two words' # tail\nA=''" -> A="1" B="two words" A=""
            "TEXT='one\n# two\nthree=3'\nNEXT='$HOME \\n \"x\"'" -> TEXT="one\n# two\nthree=3" NEXT="$HOME \\n \"x\""
            "my.name-1='x'" -> my.name-1="x"
            "A=1" -> line 1: want NAME='value'
            "A =  'x'" -> line 1: a name has 1 to 128 printable ASCII characters without blanks, quotes and '='
            "A= 'x'" -> line 1: want NAME='value'
            "A=\"x\"" -> line 1: want NAME='value'
            "word" -> line 1: want NAME='value'
            "word\nA='x'" -> line 1: want NAME='value'
            "a word='x'" -> line 1: a name has 1 to 128 printable ASCII characters without blanks, quotes and '='
            "='x'" -> line 1: a name has 1 to 128 printable ASCII characters without blanks, quotes and '='
            "é='x'" -> line 1: a name has 1 to 128 printable ASCII characters without blanks, quotes and '='
            "OK='1'\nA='1\n2\n" -> line 2: the value's closing quote is missing
            "A='1'B" -> line 1: only a comment may follow the value
            "A='1'#x" -> line 1: only a comment may follow the value
            "A='1\n2'\nB='3' x" -> line 3: only a comment may follow the value
            "A='\0'" -> line 1: the value holds a NUL byte"#]]
        .assert_eq(&got.join("\n"));
        assert_eq!(read(&format!("{}='x'", "n".repeat(128))).len(), 128 + 4);
        assert_eq!(parse(format!("{}='x'", "n".repeat(129)).as_bytes()), Err(Error::Name(1)));
        assert_eq!(parse(b"A='\xff'"), Err(Error::Encoding));
    }

    proptest! {
        /// Whatever is written in the format is read back.
        #[test]
        fn what_is_written_is_read(list in proptest::collection::vec(("[!$-&(-<>-~][!#-&(-<>-~]{0,20}", "[^'\0]{0,60}"), 0..6)) {
            let list: Vec<(String, String)> =
                list.into_iter().map(|(n, v)| (n.replace('#', "_"), v)).collect();
            let text: String = list.iter().map(|(n, v)| format!("  {n}='{v}' # c\n\n")).collect();
            prop_assert_eq!(parse(text.as_bytes()), Ok(list));
        }

        /// Any bytes, and bytes that look nearly right, end in a list or an error that names a line of the file.
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), near in "[A'=#\n \t\0é]{0,80}") {
            let _ = parse(&bytes);
            let lines = near.matches('\n').count() + 1;
            match parse(near.as_bytes()) {
                Ok(list) => prop_assert!(list.iter().all(|(n, v)| !n.is_empty() && !v.contains(['\'', '\0']))),
                Err(Error::Encoding) => prop_assert!(false),
                Err(
                    Error::Syntax(at) | Error::Name(at) | Error::Unclosed(at) | Error::Trailing(at) | Error::Nul(at),
                ) => prop_assert!((1..=lines).contains(&at), "line {} of {}", at, lines),
            }
        }
    }
}
