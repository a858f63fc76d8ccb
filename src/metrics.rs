//! Counts by size, which many threads may raise.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts by size: how many were at most so large, for each bound, and the sum.
pub struct Histogram<const N: usize> {
    bounds: [u64; N],
    /// Those within the bound and above the one before; the last bucket has no bound.
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    /// With nothing counted; `bounds` grow.
    pub const fn new(bounds: [u64; N]) -> Self {
        Self {
            bounds,
            counts: [const { AtomicU64::new(0) }; N],
            beyond: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    pub fn record(&self, value: u64) {
        let at = self.bounds.iter().position(|bound| value <= *bound);
        let count = at.map_or(&self.beyond, |at| &self.counts[at]);
        count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// For each bound, how many are at most so large; then how many there are, and their sum.
    pub fn read(&self) -> (Vec<(u64, u64)>, u64, u64) {
        let mut count = 0;
        let buckets = self.bounds.iter().zip(&self.counts);
        let buckets = buckets
            .map(|(bound, within)| {
                count += within.load(Ordering::Relaxed);
                (*bound, count)
            })
            .collect();
        count += self.beyond.load(Ordering::Relaxed);
        (buckets, count, self.sum.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_buckets_are_cumulative() {
        let histogram = Histogram::new([1, 10]);
        for value in [0, 1, 2, 10, 11] {
            histogram.record(value);
        }
        assert_eq!(histogram.read(), (vec![(1, 2), (10, 4)], 5, 24));
    }
}
