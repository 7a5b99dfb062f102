//! How far a batch is: a bar on a terminal, elsewhere a line for each job.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sd_ui::{Bar, Ui};

use super::feed::Which;
use super::results::Took;

/// Follows a batch.
pub(crate) struct Progress<'a> {
    ui: &'a Ui,
    bar: Bar,
    began: Instant,
    count: Count,
    /// Work of pictures that are made.
    running: BTreeMap<Which, u64>,
}

/// What there is and what is done.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    pictures: usize,
    work: u64,
    made: usize,
    done: u64,
    joules: f64,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(ui: &'a Ui) -> Self {
        Self {
            ui,
            bar: ui.work(),
            began: Instant::now(),
            count: Count::default(),
            running: BTreeMap::new(),
        }
    }

    /// There is more to do: so many pictures, each of so much work.
    pub(crate) fn more(&mut self, pictures: usize, work: u64) {
        self.count.pictures += pictures;
        self.count.work += work * pictures as u64;
        self.bar.set_total(self.count.work);
    }

    /// So much of a picture's work is done.
    pub(super) fn called(&mut self, picture: Which, work: u64) {
        self.running.insert(picture, work);
        let running: u64 = self.running.values().sum();
        self.bar.set(self.count.done + running);
    }

    /// A picture is there.
    pub(super) fn made(&mut self, took: Took) {
        self.count.made += 1;
        self.count.joules += took.joules.unwrap_or(0.0);
    }

    /// A picture has ended, whether it is there or not.
    pub(super) fn ended(&mut self, picture: Which, work: u64) {
        self.running.remove(&picture);
        self.count.done += work;
        self.bar
            .set(self.count.done + self.running.values().sum::<u64>());
        let words = self.count.words(self.began.elapsed());
        if !self.bar.is_visible() {
            self.ui.note(&words);
        }
        self.bar.say(words);
    }
}

impl Count {
    /// How many pictures there are, how fast they come, their energy where that is known, and how long the others will take.
    fn words(&self, elapsed: Duration) -> String {
        let per_hour = self.made as f64 * 3600.0 / elapsed.as_secs_f64().max(1e-3);
        let left = self.work.saturating_sub(self.done) as f64 / self.done.max(1) as f64;
        let left = elapsed.mul_f64(left.min(1e6)).as_secs();
        let (hours, minutes, seconds) = (left / 3600, left / 60 % 60, left % 60);
        let energy = match self.joules > 0.0 {
            true => format!("{:.0} J each, ", self.joules / self.made as f64),
            false => String::new(),
        };
        format!(
            "{} of {} pictures, {per_hour:.0} an hour, {energy}{hours}:{minutes:02}:{seconds:02} left",
            self.made, self.pictures
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_goes_by_work() {
        let count = Count {
            pictures: 4,
            work: 100,
            made: 1,
            done: 10,
            joules: 0.0,
        };
        let words = count.words(Duration::from_mins(10));
        assert_eq!(words, "1 of 4 pictures, 6 an hour, 1:30:00 left");
        let measured = Count {
            joules: 250.0,
            made: 2,
            ..count
        };
        let words = measured.words(Duration::from_mins(10));
        assert_eq!(
            words,
            "2 of 4 pictures, 12 an hour, 125 J each, 1:30:00 left"
        );
        Count::default().words(Duration::ZERO);
    }
}
