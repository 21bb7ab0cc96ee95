//! `validate --explain`: the table of the fields that work and of those that are refused.

use super::error::Error;
use super::print;
use super::table::Table;
use crate::manifest::supported::{self, Row, Support};
use serde::Serialize;

/// A row for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    field: String,
    works: bool,
    /// In pods that an API server bound to this node.
    works_bound: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    proof: Option<&'static str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    remark: String,
}

/// Prints the rows of a field and of all inside it; of all fields when `prefix` is empty.
pub(super) fn explain(prefix: &str, json: bool) -> Result<i32, Error> {
    let rows = supported::explain(prefix);
    if rows.is_empty() {
        let error = Error::new(format!("no field {prefix}"), "no type of the Pod API has it");
        return Err(match supported::closest(prefix) {
            Some(name) => error.hint(format!("did you mean {name}?  coracle validate --explain {name}")),
            None => error.hint("all fields: coracle validate --explain"),
        });
    }
    if json {
        let items: Vec<Item> = rows.into_iter().map(item).collect();
        let text = serde_json::to_string_pretty(&items)
            .map_err(|error| Error::new("cannot write the table", error.to_string()))?;
        print(&format!("{text}\n"))?;
        return Ok(0);
    }
    print(&text(&rows))?;
    Ok(0)
}

fn item(row: Row) -> Item {
    let proof = match row.field.support {
        Support::Works(test) => Some(test),
        Support::Refused(..) => None,
    };
    Item {
        works: row.field.works(),
        works_bound: row.field.works_bound(),
        proof,
        remark: row.field.remarks(),
        field: row.path,
    }
}

fn text(rows: &[Row]) -> String {
    let header = ["FIELD", "STATIC", "BOUND", "REMARK"].map(str::to_owned).to_vec();
    let line = |row: &Row| {
        let support = |works| if works { "works" } else { "refused" }.to_owned();
        let mut cells = vec![row.path.clone(), support(row.field.works()), support(row.field.works_bound())];
        // No blanks at the end of a line without a remark.
        cells.extend(Some(row.field.remarks()).filter(|remark| !remark.is_empty()));
        cells
    };
    let lines: Vec<_> = std::iter::once(header).chain(rows.iter().map(line)).collect();
    Table::default().rows(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn fields_are_told_in_columns() {
        expect![[r#"
            FIELD                                                                     STATIC   BOUND   REMARK
            spec.initContainers[*].lifecycle.postStart.httpGet                        works    works
            spec.initContainers[*].lifecycle.postStart.httpGet.host                   works    works
            spec.initContainers[*].lifecycle.postStart.httpGet.httpHeaders            works    works
            spec.initContainers[*].lifecycle.postStart.httpGet.httpHeaders[*].name    works    works
            spec.initContainers[*].lifecycle.postStart.httpGet.httpHeaders[*].value   works    works
            spec.initContainers[*].lifecycle.postStart.httpGet.path                   works    works
            spec.initContainers[*].lifecycle.postStart.httpGet.port                   works    works
            spec.initContainers[*].lifecycle.postStart.httpGet.scheme                 works    works
        "#]]
        .assert_eq(&text(&supported::explain("spec.initContainers[0].lifecycle.postStart.httpGet")));
        expect![[r#"
            FIELD                   STATIC    BOUND     REMARK
            spec.runtimeClassName   refused   refused   static: needs a RuntimeClass object, which only a cluster has; this node has one runtime; bound: this node has one runtime, and no handlers that a RuntimeClass could choose from
        "#]].assert_eq(&text(&supported::explain("runtimeClassName")));
    }
}
