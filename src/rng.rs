//! Randomness that is a function of its place: every random number is a mix of the run's seed and a counter, so a resumed
//! run, another thread count or a repeated backward pass sees the same ones.

/// SplitMix64's output function: spreads keys that differ in few bits.
pub fn splitmix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 32 well-mixed bits of counter `i` under a key ("lowbias32" multipliers; a few vector instructions).
#[inline(always)]
pub fn bits(k0: u32, k1: u32, i: u32) -> u32 {
    let mut x = i.wrapping_mul(0x9e37_79b9) ^ k0;
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d).wrapping_add(k1);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Names one forward pass of a run: the source of all its dropout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassKey(u64);

impl PassKey {
    /// `pass` counts the forward passes of the run, accumulation's micro-batches included.
    pub fn new(seed: u64, pass: u64) -> Self {
        Self(splitmix(splitmix(seed) ^ pass))
    }

    /// The key of one place in the model.
    pub fn site(self, site: u64) -> u64 {
        splitmix(self.0 ^ splitmix(site))
    }
}

/// `n` draws from N(0, std²) for the parameter of that name (Box-Muller): the same whatever else is initialised. Those beyond
/// `cutoff` standard deviations, above 0, are drawn again.
pub fn normal(seed: u64, name: &str, n: usize, std: f64, cutoff: f64) -> Vec<f32> {
    let key = name.bytes().fold(splitmix(seed), |k, b| splitmix(k ^ b as u64));
    let uniform = |key: u64, i: u64| (splitmix(key ^ splitmix(i)) >> 11) as f64 / (1u64 << 53) as f64;
    let draw = |key: u64, i: u64| {
        let radius = (-2.0 * (1.0 - uniform(key, 2 * i)).ln()).sqrt();
        radius * (std::f64::consts::TAU * uniform(key, 2 * i + 1)).cos()
    };
    let within = |i: u64| {
        let (mut key, mut z) = (key, draw(key, i));
        while z.abs() > cutoff {
            key = splitmix(key);
            z = draw(key, i);
        }
        (z * std) as f32
    };
    (0..n as u64).map(within).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_its_moments_and_depends_on_seed_and_name() {
        let (n, none) = (100_000, f64::INFINITY);
        // Cut off at two standard deviations the deviation is 0.8796 times as large.
        for (cutoff, share) in [(none, 1.0), (2.0, 0.8796)] {
            let x = normal(1, "w", n, 0.02, cutoff);
            let mean = x.iter().map(|&v| v as f64).sum::<f64>() / n as f64;
            let var = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n as f64;
            assert!(mean.abs() < 5.0 * 0.02 / (n as f64).sqrt() && (var.sqrt() / 0.02 / share - 1.0).abs() < 0.01);
            let most = x.iter().fold(0.0, |most: f64, &v| most.max(f64::from(v.abs())));
            assert!(if cutoff == none { most > 0.07 } else { (0.0399..=0.040_001).contains(&most) }, "{most}");
        }
        let first = |seed: u64, name: &str| normal(seed, name, 4, 0.02, none);
        assert_ne!(first(1, "w"), first(2, "w"));
        assert_ne!(first(1, "w"), first(1, "v"));
        assert_eq!(first(1, "w"), first(1, "w"));
    }
}
