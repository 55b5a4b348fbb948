//! Something there is only so much of: processors, connections, bytes of memory.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// An amount of which parts are taken and given back.
#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<State>,
    freed: Condvar,
}

/// Who comes first when several wait: the smaller one.
pub(crate) type Turn = (bool, String);

#[derive(Debug)]
struct State {
    limit: usize,
    used: usize,
    waiting: BTreeSet<(Turn, u64)>,
    tickets: u64,
}

/// A part that was taken; given back on drop.
#[derive(Debug)]
pub(crate) struct Share<'b> {
    budget: &'b Budget,
    amount: usize,
}

impl Budget {
    /// A budget of this much.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: Mutex::new(State { limit, used: 0, waiting: BTreeSet::new(), tickets: 0 }),
            freed: Condvar::new(),
        }
    }

    /// Waits until there is this much and nobody with an earlier turn waits, and takes it. Who wants more than there is
    /// in all gets all of it.
    pub(crate) fn take(&self, amount: usize, turn: &Turn) -> Share<'_> {
        let mut state = self.lock();
        state.tickets += 1;
        let ticket = (turn.clone(), state.tickets);
        let _ = state.waiting.insert(ticket.clone());
        let fits = |state: &State| state.used == 0 || state.used.saturating_add(amount) <= state.limit;
        while state.waiting.first() != Some(&ticket) || !fits(&state) {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let _ = state.waiting.remove(&ticket);
        state.used += amount;
        // There may be enough for the next one as well.
        self.freed.notify_all();
        Share { budget: self, amount }
    }

    /// Changes how much there is. What is taken stays taken.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.lock().limit = limit;
        self.freed.notify_all();
    }

    /// Whether anything is taken.
    pub(crate) fn is_used(&self) -> bool {
        self.lock().used > 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share<'_> {
    /// Gives all but this much back.
    pub(crate) fn shrink(&mut self, amount: usize) {
        let surplus = self.amount.saturating_sub(amount);
        self.amount -= surplus;
        self.budget.lock().used -= surplus;
        self.budget.freed.notify_all();
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn no_more_is_taken_at_a_time_than_there_is() {
        let budget = Budget::new(10);
        let (used, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for amount in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] {
                let (budget, used, most) = (&budget, &used, &most);
                let _ = scope.spawn(move || {
                    for _ in 0..200 {
                        let mut share = budget.take(amount, &Turn::default());
                        most.fetch_max(used.fetch_add(amount, Ordering::SeqCst) + amount, Ordering::SeqCst);
                        used.fetch_sub(amount - 1, Ordering::SeqCst);
                        share.shrink(1);
                        used.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 10);
        assert_eq!(budget.lock().used, 0);
    }

    #[test]
    fn what_is_larger_than_the_budget_goes_alone() {
        let budget = Budget::new(10);
        let share = budget.take(1000, &Turn::default());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| drop(budget.take(1, &Turn::default())));
            assert!(!other.is_finished());
            drop(share);
        });
    }

    #[test]
    fn whoever_has_the_earliest_turn_comes_first() {
        let budget = Budget::new(1);
        let share = budget.take(1, &Turn::default());
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for name in ["c", "a", "d", "b"] {
                let (budget, order) = (&budget, &order);
                let _ = scope.spawn(move || {
                    let _share = budget.take(1, &(true, name.to_owned()));
                    order.lock().unwrap().push(name);
                });
            }
            while budget.lock().waiting.len() < 4 {
                std::thread::yield_now();
            }
            drop(share);
        });
        assert_eq!(order.into_inner().unwrap(), ["a", "b", "c", "d"]);
    }
}
