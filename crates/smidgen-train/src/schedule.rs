//! Learning rates over a run.

/// How the rate goes on after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// It stays.
    #[default]
    Constant,
    /// It falls in a straight line to zero.
    Linear,
    /// It falls along half a cosine to zero.
    Cosine,
}

/// A schedule, as transformers' get_scheduler names them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub learning_rate: f64,
    /// How it goes on after warm-up.
    pub shape: Shape,
    /// Steps over which the rate rises from zero.
    pub warmup: u64,
    /// Steps of the run.
    pub total: u64,
}

impl Schedule {
    /// The rate of a step, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.learning_rate * step as f64 / self.warmup as f64;
        }
        let after = self.total.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / after).min(1.0);
        let factor = match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => 1.0 - progress,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.learning_rate * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall() {
        let at =
            |shape, step| Schedule { learning_rate: 1.0, shape, warmup: 2, total: 10 }.rate(step);
        assert_eq!([0, 1, 2].map(|s| at(Shape::Constant, s)), [0.0, 0.5, 1.0]);
        assert_eq!([2, 6, 10].map(|s| at(Shape::Linear, s)), [1.0, 0.5, 0.0]);
        assert_eq!(at(Shape::Cosine, 2), 1.0);
        assert!((at(Shape::Cosine, 6) - 0.5).abs() < 1e-12);
    }
}
