//! Whether something keeps the wall clock right.
#![allow(unsafe_code)]

/// What the kernel knows of it: NTP, PTP or whoever else disciplines the clock tells it. `None` if it does not say.
#[must_use]
pub fn is_synchronised() -> Option<bool> {
    // SAFETY: `timex` is integers only, for which zero is a value; no mode is set, so nothing is changed.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes to the whole of `state` at most, which lives until after the call.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    (answer >= 0).then_some(state.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_tells() {
        // Whatever it says, it says the same twice.
        assert_eq!(super::is_synchronised(), super::is_synchronised());
    }
}
