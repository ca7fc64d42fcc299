//! Places with short names: what an event of the poller belongs to is found by an index, and an event that comes late
//! for something that is gone finds nothing.

/// Names a place and its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) index: u32,
    generation: u32,
}

impl Token {
    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_u64(value: u64) -> Self {
        Self { index: value as u32, generation: (value >> 32) as u32 }
    }
}

struct Place<T> {
    generation: u32,
    tenant: Option<T>,
}

/// A growing set of places.
pub(super) struct Slots<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    /// `make` is told its name.
    pub(super) fn insert_with(&mut self, make: impl FnOnce(Token) -> T) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, tenant: None });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        let token = Token { index, generation: place.generation };
        place.tenant = Some(make(token));
        token
    }

    pub(super) fn get(&self, token: Token) -> Option<&T> {
        let place = self.places.get(token.index as usize)?;
        place.tenant.as_ref().filter(|_| place.generation == token.generation)
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let place = self.places.get_mut(token.index as usize)?;
        place.tenant.as_mut().filter(|_| place.generation == token.generation)
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<T> {
        let place = self.places.get_mut(token.index as usize)?;
        if place.generation != token.generation {
            return None;
        }
        let tenant = place.tenant.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(token.index);
        // After a burst the memory goes back.
        if self.free.len() == self.places.len() && self.places.len() > 1024 {
            let highest = self.places.iter().map(|place| place.generation).max().unwrap_or_default();
            self.places = Vec::new();
            self.free = Vec::new();
            self.floor(highest);
        }
        Some(tenant)
    }

    /// Names handed out before stay unknown.
    fn floor(&mut self, generation: u32) {
        for _ in 0..16 {
            self.places.push(Place { generation, tenant: None });
        }
        self.free.extend((0..16).rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_somebody_who_left_finds_nobody() {
        let mut slots = Slots::new();
        let first = slots.insert_with(|_| "first");
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert_with(|_| "second");
        assert_eq!((second.index, slots.get(first)), (first.index, None));
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get_mut(Token::from_u64(second.to_u64())), Some(&mut "second"));
    }
}
