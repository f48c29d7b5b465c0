//! People at the line, and a keeper that remembers.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemas::transcript::Event;
use shoal_agents::{Keeper, Line, Progress, Unanswered};

/// Hears everything that is told; says and answers what it was given.
#[derive(Default)]
pub struct People {
    told: Mutex<Vec<Event>>,
    says: Mutex<Vec<String>>,
    answers: Mutex<VecDeque<String>>,
    asked: Mutex<Vec<String>>,
    kept: Mutex<Vec<Progress>>,
    silent: AtomicBool,
}

impl People {
    /// Said before the next turn.
    pub fn say(&self, text: &str) {
        self.says.lock().unwrap().push(text.to_owned());
    }

    /// The answer to the next question; without one nobody answers.
    pub fn answer(&self, text: &str) {
        self.answers.lock().unwrap().push_back(text.to_owned());
    }

    /// Questions are open for ever.
    pub fn never_answer(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    pub fn told(&self) -> Vec<Event> {
        self.told.lock().unwrap().clone()
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub fn kept(&self) -> Vec<Progress> {
        self.kept.lock().unwrap().clone()
    }
}

impl Line for People {
    fn tell(&self, event: Event) {
        self.told.lock().unwrap().push(event);
    }

    fn ask<'a>(&'a self, question: &'a str) -> BoxFuture<'a, Result<String, Unanswered>> {
        self.asked.lock().unwrap().push(question.to_owned());
        if self.silent.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        let answer = self.answers.lock().unwrap().pop_front();
        Box::pin(std::future::ready(answer.ok_or(Unanswered(Duration::from_secs(1)))))
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut *self.says.lock().unwrap())
    }
}

impl Keeper for People {
    fn turn<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, ()> {
        self.kept.lock().unwrap().push(progress.clone());
        Box::pin(std::future::ready(()))
    }
}
