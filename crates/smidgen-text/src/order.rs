//! The order in which an epoch visits its sequences.

use crate::vocab::spread;

/// Which sequence comes when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they stand in the file, every epoch.
    File,
    /// Shuffled anew each epoch, the same on every machine.
    Shuffled {
        /// Decides the order together with the epoch's number.
        seed: u64,
    },
}

impl Order {
    /// The indices 0 to `count` in the order of `epoch`, counted from 0.
    ///
    /// The shuffle is Fisher and Yates's from the last index down, index i swapped with
    /// floor(r (i + 1) / 2^64); the r are SplitMix64's numbers (Steele, Lea and Flood 2014) from the
    /// state `spread(spread(seed) + epoch)`, `spread` being SplitMix64's finishing step.
    pub fn epoch(self, count: u32, epoch: u64) -> Vec<u32> {
        let mut indices: Vec<u32> = (0..count).collect();
        if let Self::Shuffled { seed } = self {
            let mut state = spread(spread(seed).wrapping_add(epoch));
            for i in (1..indices.len()).rev() {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let chosen = (u128::from(spread(state)) * (i as u128 + 1)) >> 64;
                indices.swap(i, chosen as usize);
            }
        }
        indices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_that_never_changes() {
        let order = Order::Shuffled { seed: 42 };
        assert_eq!(order.epoch(8, 0), [6, 0, 7, 2, 5, 1, 3, 4]);
        assert_ne!(order.epoch(8, 0), order.epoch(8, 1));
        let mut all = order.epoch(1000, 3);
        assert_ne!(all, Order::File.epoch(1000, 3));
        all.sort_unstable();
        assert_eq!(all, Order::File.epoch(1000, 0));
        assert!(order.epoch(0, 0).is_empty());
    }

    #[test]
    fn places_are_even() {
        let mut counts = [[0u32; 4]; 4];
        for epoch in 0..4000 {
            for (place, &index) in (Order::Shuffled { seed: 1 }).epoch(4, epoch).iter().enumerate()
            {
                counts[index as usize][place] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|&count| (880..1120).contains(&count)), "{counts:?}");
    }
}
