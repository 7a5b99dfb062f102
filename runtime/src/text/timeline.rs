//! What changes while a picture is made: prompts that are edited or alternate.

/// Values that take turns over the calls of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline<T> {
    /// Different values.
    values: Vec<T>,
    /// The last step of each turn, and whose turn it is.
    turns: Vec<(usize, usize)>,
}

impl<T> Timeline<T> {
    /// The same throughout.
    #[must_use]
    pub fn always(value: T) -> Self {
        Self {
            values: vec![value],
            turns: vec![(0, 0)],
        }
    }

    /// Values with the last step of each, in order of steps; at least one.
    pub(super) fn new(turns: impl IntoIterator<Item = (usize, T)>) -> Self
    where
        T: PartialEq,
    {
        let mut line = Self {
            values: Vec::new(),
            turns: Vec::new(),
        };
        for (until, value) in turns {
            let known = line.values.iter().position(|known| *known == value);
            let place = known.unwrap_or(line.values.len());
            if known.is_none() {
                line.values.push(value);
            }
            line.turns.push((until, place));
        }
        debug_assert!(!line.turns.is_empty(), "it is somebody's turn");
        line
    }

    /// The different values.
    #[must_use]
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// The different values.
    pub fn values_mut(&mut self) -> &mut [T] {
        &mut self.values
    }

    /// Turns: the last step of each, and its value.
    pub fn turns(&self) -> impl Iterator<Item = (usize, &T)> {
        let turns = self.turns.iter();
        turns.map(|&(until, place)| (until, &self.values[place]))
    }

    /// Whose turn it is after this many calls of the model. A1111 counts calls, not steps, and compares them with the last
    /// step of each turn; after the last turn it is the first one's again.
    #[must_use]
    pub fn at(&self, calls: usize) -> &T {
        let mut turns = self.turns.iter();
        let turn = turns.find(|(until, _)| calls <= *until);
        let (_, place) = turn.unwrap_or(&self.turns[0]);
        &self.values[*place]
    }

    /// Whether it is always the same value.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.values.len() == 1
    }

    /// How many calls it takes until everybody's turn has been and the first one's begins again.
    #[must_use]
    pub fn round(&self) -> usize {
        self.turns.last().map_or(1, |(until, _)| until + 2)
    }

    /// The same turns with other values, each made once.
    ///
    /// # Errors
    /// The first value that cannot be made.
    pub fn try_map<U, E>(&self, make: impl FnMut(&T) -> Result<U, E>) -> Result<Timeline<U>, E> {
        let values = self.values.iter().map(make).collect::<Result<_, E>>()?;
        Ok(Timeline {
            values,
            turns: self.turns.clone(),
        })
    }
}

/// What should be seen, in weighted parts, and what should not.
#[derive(Clone, Debug, PartialEq)]
pub struct Guides<T> {
    /// Parts that `AND` joins, with their weights; at least one.
    pub cond: Vec<(Timeline<T>, f64)>,
    /// The negative prompt.
    pub uncond: Timeline<T>,
}

impl<T> Guides<T> {
    /// One prompt and one negative prompt.
    #[must_use]
    pub fn plain(cond: T, uncond: T) -> Self {
        Self {
            cond: vec![(Timeline::always(cond), 1.0)],
            uncond: Timeline::always(uncond),
        }
    }

    /// Whether guidance is all that prompts are for: they are one each, and the prompt has the full weight.
    #[must_use]
    pub fn is_single(&self) -> bool {
        matches!(self.cond[..], [(_, 1.0)])
    }

    /// The different values of every timeline, those of the negative prompt last, and whether they are that.
    pub fn values(&self) -> impl Iterator<Item = (&T, bool)> {
        let cond = self.cond.iter().flat_map(|(line, _)| line.values());
        let cond = cond.map(|value| (value, false));
        cond.chain(self.uncond.values().iter().map(|value| (value, true)))
    }

    /// [`Self::values`].
    pub fn values_mut(&mut self) -> impl Iterator<Item = (&mut T, bool)> {
        let cond = self.cond.iter_mut();
        let cond = cond.flat_map(|(line, _)| line.values_mut());
        let cond = cond.map(|value| (value, false));
        let uncond = self.uncond.values_mut().iter_mut();
        cond.chain(uncond.map(|value| (value, true)))
    }

    /// The same with other values. `make` is told whether it is for the negative prompt.
    ///
    /// # Errors
    /// The first value that cannot be made.
    pub fn try_map<U, E>(
        &self,
        mut make: impl FnMut(&Timeline<T>, bool) -> Result<Timeline<U>, E>,
    ) -> Result<Guides<U>, E> {
        let cond = self.cond.iter();
        let cond = cond.map(|(line, weight)| Ok((make(line, false)?, *weight)));
        Ok(Guides {
            cond: cond.collect::<Result<_, E>>()?,
            uncond: make(&self.uncond, true)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_counted_as_a1111_counts_calls() {
        let line = Timeline::new([(2, "a"), (4, "b"), (5, "a")]);
        let seen: Vec<_> = (0..8).map(|call| *line.at(call)).collect();
        assert_eq!(seen, ["a", "a", "a", "b", "b", "a", "a", "a"]);
        assert_eq!((line.values(), line.round()), (&["a", "b"][..], 7));
        let line = Timeline::new([(1, "a"), (2, "b")]);
        assert_eq!([2, 3, 9].map(|call| *line.at(call)), ["b", "a", "a"]);
        assert!(!line.is_constant() && Timeline::always(1).is_constant());
    }
}
