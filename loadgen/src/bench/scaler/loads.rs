//! Owns: the loads of the comparison: how many jobs become ready when, how heavy they are, when the store is gone.

/// A load; times are seconds since its start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub name: &'static str,
    pub says: &'static str,
    pub seconds: f64,
    pub shape: Shape,
    /// Jobs that become ready at once.
    pub burst: Option<(f64, u32)>,
    /// From, to, how many times as heavy jobs are.
    pub heavier: Option<(f64, f64, f64)>,
    /// From, to: nothing completes.
    pub outage: Option<(f64, f64)>,
}

/// Arrivals over time, as shares of what the backend can do at most.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Constant(f64),
    /// Low until the moment, then high.
    Step {
        at: f64,
        low: f64,
        high: f64,
    },
    /// Low until, then evenly up, high from.
    Ramp {
        from: f64,
        to: f64,
        low: f64,
        high: f64,
    },
    /// Low and high for half of the period each.
    Square {
        period: f64,
        low: f64,
        high: f64,
    },
    Sine {
        period: f64,
        low: f64,
        high: f64,
    },
}

impl Shape {
    fn share(self, t: f64) -> f64 {
        match self {
            Shape::Constant(share) => share,
            Shape::Step { at, low, high } => {
                if t < at {
                    low
                } else {
                    high
                }
            }
            Shape::Ramp { from, to, low, high } => low + (high - low) * ((t - from) / (to - from)).clamp(0.0, 1.0),
            Shape::Square { period, low, high } => {
                if t % period < period / 2.0 {
                    low
                } else {
                    high
                }
            }
            Shape::Sine { period, low, high } => low + (high - low) * (1.0 - (std::f64::consts::TAU * t / period).cos()) / 2.0,
        }
    }

    fn most(self) -> f64 {
        match self {
            Shape::Constant(share) => share,
            Shape::Step { high, .. } | Shape::Ramp { high, .. } | Shape::Square { high, .. } | Shape::Sine { high, .. } => high,
        }
    }
}

const PLAIN: Load = Load { name: "", says: "", seconds: 600.0, shape: Shape::Constant(0.0), burst: None, heavier: None, outage: None };

/// All of them.
pub(super) const LOADS: [Load; 8] = [
    Load {
        name: "step",
        says: "10 % of capacity, 80 % from 60 s on",
        seconds: 900.0,
        shape: Shape::Step { at: 60.0, low: 0.1, high: 0.8 },
        ..PLAIN
    },
    Load {
        name: "ramp",
        says: "10 % to 80 % within 5 minutes",
        seconds: 480.0,
        shape: Shape::Ramp { from: 60.0, to: 360.0, low: 0.1, high: 0.8 },
        ..PLAIN
    },
    Load {
        name: "square",
        says: "10 % and 80 %, 2 minutes each",
        seconds: 960.0,
        shape: Shape::Square { period: 240.0, low: 0.1, high: 0.8 },
        ..PLAIN
    },
    Load {
        name: "sine",
        says: "10 % to 80 % and back in 5 minutes",
        seconds: 900.0,
        shape: Shape::Sine { period: 300.0, low: 0.1, high: 0.8 },
        ..PLAIN
    },
    Load { name: "burst", says: "10 %, and 10,000 jobs at once", shape: Shape::Constant(0.1), burst: Some((60.0, 10_000)), ..PLAIN },
    Load {
        name: "heavier",
        says: "30 %, jobs 3 times as heavy for 5 minutes",
        shape: Shape::Constant(0.3),
        heavier: Some((120.0, 420.0, 3.0)),
        ..PLAIN
    },
    Load {
        name: "outage",
        says: "50 %, the store is gone for 60 s",
        seconds: 480.0,
        shape: Shape::Constant(0.5),
        outage: Some((120.0, 180.0)),
        ..PLAIN
    },
    Load { name: "constant", says: "60 % for 10 minutes", shape: Shape::Constant(0.6), ..PLAIN },
];

impl Load {
    /// Jobs a second at a moment.
    pub(super) fn rate(&self, t: f64, capacity: f64) -> f64 {
        self.shape.share(t) * capacity
    }

    /// Its highest value.
    pub(super) fn peak(&self, capacity: f64) -> f64 {
        self.shape.most() * capacity
    }

    /// How heavy jobs are that start at a moment.
    pub(super) fn weight(&self, t: f64) -> f64 {
        self.heavier.filter(|(from, to, _)| (*from..*to).contains(&t)).map_or(1.0, |(_, _, times)| times)
    }

    /// Whether the store is gone.
    pub(super) fn is_out(&self, t: f64) -> bool {
        self.outage.is_some_and(|(from, to)| (from..to).contains(&t))
    }

    /// What follows each sudden change of the load, in order; a load that changes slowly has none.
    pub(super) fn phases(&self) -> Vec<Phase> {
        let mut edges: Vec<(f64, Change)> = match self.shape {
            Shape::Step { at, .. } => vec![(at, Change::Rises)],
            Shape::Square { period, .. } => {
                let edges = std::iter::successors(Some(period / 2.0), |t| Some(t + period / 2.0)).take_while(|t| *t < self.seconds);
                edges.zip([Change::Rises, Change::Falls].into_iter().cycle()).collect()
            }
            _ => Vec::new(),
        };
        edges.extend(self.burst.map(|(at, _)| (at, Change::Backlog)));
        edges.extend(self.heavier.into_iter().flat_map(|(from, to, _)| [(from, Change::Rises), (to, Change::Falls)]));
        edges.extend(self.outage.into_iter().flat_map(|(_, to)| [(to, Change::Backlog)]));
        let until = edges.iter().skip(1).map(|(at, _)| *at).chain([self.seconds]);
        edges.iter().zip(until).map(|((from, change), until)| Phase { from: *from, until, change: *change }).collect()
    }
}

/// What begins with a sudden change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    pub from: f64,
    pub until: f64,
    pub change: Change,
}

impl Phase {
    /// Whether a moment is within.
    pub(super) fn holds(&self, at: f64) -> bool {
        (self.from..self.until).contains(&at)
    }
}

/// How the load changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// To more work, for the whole phase.
    Rises,
    /// To less.
    Falls,
    /// Work is there all at once, and is gone when it is done.
    Backlog,
}
