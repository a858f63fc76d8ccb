//! Histograms that many threads can update.

use std::sync::atomic::{AtomicU64, Ordering};

/// A histogram with fixed bucket bounds and atomic counts.
pub struct Histogram<const N: usize> {
    bounds: [u64; N],
    /// Values up to the bound of each bucket and above the previous one.
    counts: [AtomicU64; N],
    /// Values above the last bound.
    overflow: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    /// Creates an empty histogram. `bounds` must be in ascending order.
    pub const fn new(bounds: [u64; N]) -> Self {
        Self {
            bounds,
            counts: [const { AtomicU64::new(0) }; N],
            overflow: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    pub fn record(&self, value: u64) {
        let at = self.bounds.iter().position(|bound| value <= *bound);
        let count = at.map_or(&self.overflow, |at| &self.counts[at]);
        count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Returns each bound with the number of values up to it, the number of all values, and their
    /// sum.
    pub fn read(&self) -> (Vec<(u64, u64)>, u64, u64) {
        let mut count = 0;
        let buckets = self.bounds.iter().zip(&self.counts);
        let buckets = buckets
            .map(|(bound, within)| {
                count += within.load(Ordering::Relaxed);
                (*bound, count)
            })
            .collect();
        count += self.overflow.load(Ordering::Relaxed);
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
