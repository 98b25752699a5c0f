//! An order of insertion that leaves no room unused in the nodes of persistent maps and sets.

/// Every other one of an ordered row, then the rest. A full node is split into halves, and where keys
/// come in order nothing more comes into the half left behind. The second round fills it.
pub(crate) fn two_rounds<I: Iterator + Clone>(ordered: I) -> impl Iterator<Item = I::Item> {
    ordered.clone().step_by(2).chain(ordered.skip(1).step_by(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_one_comes_once() {
        for count in 0..6 {
            let mut all: Vec<u32> = two_rounds(0..count).collect();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
        assert_eq!(two_rounds(0..5).collect::<Vec<_>>(), [0, 2, 4, 1, 3]);
    }
}
