//! Axes: from numbers to places, and the round numbers on the way.

/// How an axis is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal distances for equal differences.
    Linear,
    /// Equal distances for equal ratios; the numbers are above zero.
    Log,
}

/// An axis with a name.
#[derive(Clone, Debug)]
pub struct Axis {
    name: String,
    scale: Scale,
    from: f64,
    to: f64,
    /// Distance of a linear axis' ticks.
    step: f64,
}

impl Axis {
    /// An axis over `from..=to`, widened to round numbers where it is linear. Numbers that can't be
    /// drawn (no range, or not finite) give an axis from 0 to 1.
    pub fn new(name: &str, scale: Scale, from: f64, to: f64) -> Self {
        let drawable = from.is_finite() && to.is_finite() && from < to;
        let (from, to) = if drawable { (from, to) } else { (0.0, 1.0) };
        let scale = if from > 0.0 { scale } else { Scale::Linear };
        let step = round_step((to - from) / 5.0);
        let name = name.to_owned();
        match scale {
            Scale::Log => Self { name, scale, from, to, step },
            Scale::Linear => {
                let (from, to) = ((from / step).floor() * step, (to / step).ceil() * step);
                Self { name, scale, from, to, step }
            }
        }
    }

    /// The same axis, which ends just where the numbers do.
    pub fn ending_at(self, to: f64) -> Self {
        if to.is_finite() && to > self.from { Self { to, ..self } } else { self }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number at the axis' end.
    pub fn to(&self) -> f64 {
        self.to
    }

    /// Where `value` lies, from 0 at the axis' beginning to 1 at its end.
    pub fn share(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Log => (value / self.from).ln() / (self.to / self.from).ln(),
        };
        share.clamp(0.0, 1.0)
    }

    /// The round numbers on the axis, and how they are written.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => self.linear_ticks(),
            Scale::Log => self.log_ticks(),
        }
    }

    fn linear_ticks(&self) -> Vec<(f64, String)> {
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        let count = ((self.to - self.from) / self.step + 1e-9).floor() as usize;
        (0..=count)
            .map(|i| self.from + i as f64 * self.step)
            .map(|tick| (tick, format!("{tick:.decimals$}")))
            .collect()
    }

    /// 1, 2 and 5 times powers of ten.
    fn log_ticks(&self) -> Vec<(f64, String)> {
        let exponents = self.from.log10().floor() as i32..=self.to.log10().floor() as i32;
        exponents
            .flat_map(|exponent| [1.0, 2.0, 5.0].map(|digit| (digit, exponent)))
            .map(|(digit, exponent)| (digit * 10f64.powi(exponent), (-exponent).max(0) as usize))
            .filter(|(tick, _)| (self.from..=self.to).contains(tick))
            .map(|(tick, decimals)| (tick, format!("{tick:.decimals$}")))
            .collect()
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let factor = factors.into_iter().find(|factor| factor * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn linear_axes_have_round_ends_and_ticks() {
        let axis = Axis::new("MB", Scale::Linear, 0.0, 149.6);
        assert_eq!(written(&axis), ["0", "50", "100", "150"]);
        assert_eq!((axis.to(), axis.share(75.0)), (150.0, 0.5));
        let axis = Axis::new("s", Scale::Linear, 4.58, 5.79);
        assert_eq!(written(&axis), ["4.5", "5.0", "5.5", "6.0"]);
        let axis = Axis::new("s", Scale::Linear, 0.0, 0.012);
        assert_eq!(written(&axis), ["0.000", "0.005", "0.010", "0.015"]);
        let axis = Axis::new("s", Scale::Linear, 0.0, 147.0).ending_at(147.0);
        assert_eq!((written(&axis).last().unwrap().as_str(), axis.to()), ("100", 147.0));
    }

    #[test]
    fn log_axes_have_equal_distances_for_equal_ratios() {
        let axis = Axis::new("MB", Scale::Log, 30.0, 3000.0);
        assert_eq!(written(&axis), ["50", "100", "200", "500", "1000", "2000"]);
        assert!((axis.share(300.0) - 0.5).abs() < 1e-12);
        assert_eq!(written(&Axis::new("", Scale::Log, 0.04, 0.6)), ["0.05", "0.1", "0.2", "0.5"]);
    }

    #[test]
    fn what_cannot_be_drawn_is_drawn_somewhere() {
        for (from, to) in [(3.0, 3.0), (f64::NAN, 1.0), (0.0, f64::INFINITY), (2.0, 1.0)] {
            let axis = Axis::new("", Scale::Log, from, to);
            assert_eq!(written(&axis).len(), 6);
            assert_eq!(axis.share(1e300), 1.0);
        }
    }
}
