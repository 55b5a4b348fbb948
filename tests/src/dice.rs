//! Random choices that can be made again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Random numbers from a seed: `$WALKEEP_SEED`, else the clock. When the test fails, the seed is printed.
#[derive(Debug)]
pub struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    /// Takes the seed.
    pub fn new() -> Self {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
        let seed = std::env::var("WALKEEP_SEED").ok().map(|seed| seed.parse().expect("WALKEEP_SEED is a number"));
        let seed = seed.unwrap_or(u64::from(clock.subsec_nanos()));
        Self { seed, state: seed }
    }

    /// A number below `limit`, by `SplitMix64`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// A time of up to `longest`.
    pub fn up_to(&mut self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.below(micros.max(1)))
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Dice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again with WALKEEP_SEED={}", self.seed);
        }
    }
}
