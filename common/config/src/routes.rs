//! Routes by the domains they are for, found without a look at each: a host may have tens of thousands.

use std::collections::HashMap;

use postern_address::Domain;

use crate::types::{Route, RoutePattern};

/// The places of routes in their order, by their patterns. The first that matches wins.
#[derive(Clone, Debug, Default)]
pub struct RouteIndex {
    domains: HashMap<String, usize>,
    /// By the parent.
    below: HashMap<String, usize>,
    any: Option<usize>,
    length: usize,
}

impl RouteIndex {
    /// Of all these.
    pub fn new(routes: &[Route]) -> Self {
        let mut index = Self::default();
        routes.iter().for_each(|route| index.push(&route.domain));
        index
    }

    /// Of one more, behind the others.
    pub fn push(&mut self, pattern: &RoutePattern) {
        let n = self.length;
        self.length += 1;
        match pattern {
            RoutePattern::Domain(domain) => _ = self.domains.entry(domain.as_str().to_owned()).or_insert(n),
            RoutePattern::Below(parent) => _ = self.below.entry(parent.as_str().to_owned()).or_insert(n),
            RoutePattern::Any => _ = self.any.get_or_insert(n),
        }
    }

    /// The place of the route that takes a domain's mail.
    pub fn first(&self, domain: &Domain) -> Option<usize> {
        least([self.exactly(domain), self.least_below(parents(domain)), self.any])
    }

    /// Of the route for this domain and no other.
    pub fn exactly(&self, domain: &Domain) -> Option<usize> {
        self.domains.get(domain.as_str()).copied()
    }

    /// Of the route for every domain.
    pub fn any(&self) -> Option<usize> {
        self.any
    }

    /// Of the first that takes all that a route with this pattern would.
    pub fn covering(&self, pattern: &RoutePattern) -> Option<usize> {
        match pattern {
            RoutePattern::Domain(domain) => self.first(domain),
            RoutePattern::Below(parent) => {
                let names = std::iter::once(parent.as_str()).chain(parents(parent));
                least([self.least_below(names), self.any])
            }
            RoutePattern::Any => self.any,
        }
    }

    fn least_below<'n>(&self, names: impl Iterator<Item = &'n str>) -> Option<usize> {
        least(names.map(|name| self.below.get(name).copied()))
    }
}

/// The names that a domain is below.
fn parents(domain: &Domain) -> impl Iterator<Item = &str> {
    let name = domain.as_str();
    name.match_indices('.').filter_map(|(dot, _)| name.get(dot + 1..))
}

fn least(places: impl IntoIterator<Item = Option<usize>>) -> Option<usize> {
    places.into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = Domain> {
        proptest::collection::vec("[ab]", 1..4).prop_map(|labels| Domain::parse(&labels.join(".")).unwrap())
    }

    fn pattern() -> impl Strategy<Value = RoutePattern> {
        prop_oneof![
            4 => name().prop_map(RoutePattern::Domain),
            4 => name().prop_map(RoutePattern::Below),
            1 => Just(RoutePattern::Any),
        ]
    }

    fn takes(pattern: &RoutePattern, domain: &Domain) -> bool {
        match pattern {
            RoutePattern::Domain(one) => one == domain,
            RoutePattern::Below(parent) => domain != parent && domain.is_within(parent),
            RoutePattern::Any => true,
        }
    }

    /// By what they mean: nothing that the later one takes is left to it.
    fn covers(earlier: &RoutePattern, later: &RoutePattern) -> bool {
        match (earlier, later) {
            (_, RoutePattern::Domain(one)) => takes(earlier, one),
            (RoutePattern::Any, _) => true,
            (RoutePattern::Below(parent), RoutePattern::Below(one)) => one.is_within(parent),
            _ => false,
        }
    }

    proptest! {
        /// The index says what a look at each route says.
        #[test]
        fn as_one_after_the_other(
            patterns in proptest::collection::vec(pattern(), 0..12),
            asked in name(),
            new in pattern(),
        ) {
            let mut index = RouteIndex::default();
            patterns.iter().for_each(|pattern| index.push(pattern));
            prop_assert_eq!(index.first(&asked), patterns.iter().position(|pattern| takes(pattern, &asked)));
            let exact = RoutePattern::Domain(asked.clone());
            prop_assert_eq!(index.exactly(&asked), patterns.iter().position(|pattern| *pattern == exact));
            prop_assert_eq!(index.any(), patterns.iter().position(|pattern| *pattern == RoutePattern::Any));
            prop_assert_eq!(index.covering(&new), patterns.iter().position(|pattern| covers(pattern, &new)));
        }
    }
}
