//! The shapes of values: sections, texts, lists, numbers, sizes, times; each read from the file's tables, with
//! what is wrong noted at its place.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Place, Problem, nearest};
use crate::keys::{KEYS, bare, keys_of, sections};
use crate::value::{self, Mistake, mistake};

/// A value and where it stands.
pub(crate) type Value<'t> = Spanned<DeValue<'t>>;

/// Something read and where it stands.
pub(crate) type At<T> = (Range<usize>, T);

pub(crate) struct Reader<'s> {
    pub(crate) text: &'s str,
    pub(crate) problems: Vec<At<Problem>>,
}

/// One section, or the top of the file; empty when the file does not have it.
pub(crate) struct Section<'v, 't> {
    pub(crate) name: &'static str,
    pub(crate) table: Option<&'v DeTable<'t>>,
    pub(crate) at: Range<usize>,
}

impl Section<'_, '_> {
    pub(crate) fn is_present(&self) -> bool {
        self.table.is_some()
    }
}

/// The shapes of values.
impl Reader<'_> {
    pub(crate) fn problem(&mut self, at: Range<usize>, message: String, help: Option<String>) {
        let place = Some(Place::of(self.text, &at));
        self.problems.push((at, Problem { message, help, place }));
    }

    pub(crate) fn take<T>(&mut self, value: &Value<'_>, result: Result<T, Mistake>) -> Option<T> {
        result.map_err(|m| self.problem(value.span(), m.message, m.help)).ok()
    }

    pub(crate) fn wrong_type<T>(&mut self, value: &Value<'_>, wanted: &str) -> Option<T> {
        let read = value.get_ref().type_str();
        let article = if read.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let message = format!("{article} {read}, where {wanted} should stand");
        self.problem(value.span(), message, None);
        None
    }

    pub(crate) fn section<'v, 't>(&mut self, root: &'v DeTable<'t>, name: &'static str) -> Section<'v, 't> {
        let Some((key, value)) = find(root, bare(name)) else {
            return Section { name, table: None, at: 0..0 };
        };
        let table = value.get_ref().as_table();
        match table {
            Some(table) => self.unknown_keys(name, table),
            None => self.problem(
                key.span(),
                format!("`{}` is a section", bare(name)),
                Some(format!("write {name}")),
            ),
        }
        Section { name, table, at: key.span() }
    }

    pub(crate) fn tables<'v, 't>(
        &mut self,
        root: &'v DeTable<'t>,
        name: &'static str,
    ) -> Vec<Section<'v, 't>> {
        let Some((key, value)) = find(root, bare(name)) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            let message = format!("there may be several of `{}`", bare(name));
            self.problem(key.span(), message, Some(format!("write {name}, with two brackets")));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for value in array.iter() {
            match value.get_ref().as_table() {
                Some(table) => {
                    self.unknown_keys(name, table);
                    sections.push(Section { name, table: Some(table), at: value.span() });
                }
                None => {
                    self.wrong_type::<()>(value, &format!("a section {name}"));
                }
            }
        }
        sections
    }

    pub(crate) fn unknown_keys(&mut self, section: &'static str, table: &DeTable<'_>) {
        let sections = sections();
        let is_section = |key: &str| section.is_empty() && sections.iter().any(|s| bare(s) == key);
        let mut unknown = Vec::new();
        for (key, value) in table {
            let name: &str = key.get_ref();
            if keys_of(section).any(|known| known == name) || is_section(name) {
                continue;
            }
            let table = value.get_ref().is_table();
            let what = if table && section.is_empty() { "section" } else { "key" };
            let place = if section.is_empty() { String::new() } else { format!(" in {section}") };
            unknown.push((
                key.span(),
                format!("unknown {what} `{name}`{place}"),
                meant(section, name, &sections),
            ));
        }
        for (at, message, help) in unknown {
            self.problem(at, message, Some(help));
        }
    }

    pub(crate) fn optional<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        read: impl FnOnce(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Option<At<T>> {
        debug_assert!(keys_of(section.name).any(|known| known == key), "{} {key}", section.name);
        let (_, value) = find(section.table?, key)?;
        Some((value.span(), read(self, value)?))
    }

    pub(crate) fn required<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        read: impl FnOnce(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Option<At<T>> {
        if section.table.is_some_and(|table| find(table, key).is_none()) {
            // A misspelt key is one mistake, not two.
            let misspelt = |name: &str| {
                !keys_of(section.name).any(|known| known == name)
                    && nearest(name, keys_of(section.name)) == Some(key)
            };
            if section.table.is_some_and(|table| table.keys().any(|name| misspelt(name.get_ref()))) {
                return None;
            }
            let place = if section.name.is_empty() { String::new() } else { format!(" in {}", section.name) };
            let help = example(section.name, key);
            self.problem(section.at.clone(), format!("`{key}` is missing{place}"), Some(help));
            return None;
        }
        self.optional(section, key, read)
    }

    pub(crate) fn list<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        read: fn(&str) -> Result<T, Mistake>,
    ) -> Vec<At<T>> {
        self.optional(section, key, |reader, v| reader.items(v, read))
            .map(|(_, items)| items)
            .unwrap_or_default()
    }

    pub(crate) fn items<T>(
        &mut self,
        value: &Value<'_>,
        read: fn(&str) -> Result<T, Mistake>,
    ) -> Option<Vec<At<T>>> {
        let Some(array) = value.get_ref().as_array() else {
            if let Some(one) = value.get_ref().as_str() {
                let help = format!("write [\"{one}\"]");
                self.problem(value.span(), "a list should stand here".to_owned(), Some(help));
                return None;
            }
            return self.wrong_type(value, "a list of texts");
        };
        let mut items = Vec::new();
        let before = self.problems.len();
        for value in array.iter() {
            if let Some(item) = text(read)(self, value) {
                items.push((value.span(), item));
            }
        }
        // A list of which one item is broken is broken, but its other items were looked at.
        (self.problems.len() == before).then_some(items)
    }

    pub(crate) fn number(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let read = |reader: &mut Self, value: &Value<'_>| {
            let Some(number) = integer(value) else { return reader.wrong_type(value, "a whole number") };
            reader.take(value, within(number, &range, ""))
        };
        self.optional(section, key, read).map(|(_, number)| number)
    }

    pub(crate) fn size(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let read = |reader: &mut Self, value: &Value<'_>| {
            let octets = match (integer(value), value.get_ref().as_str()) {
                (Some(octets), _) => octets,
                (_, Some(text)) => i128::from(reader.take(value, value::size(text))?),
                _ => return reader.wrong_type(value, "a size, as \"50 MiB\","),
            };
            reader.take(value, within(octets, &range, " octets"))
        };
        self.optional(section, key, read).map(|(_, size)| size)
    }

    pub(crate) fn time(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        least: Duration,
    ) -> Option<Duration> {
        self.time_at(section, key, least).map(|(_, time)| time)
    }

    pub(crate) fn time_at(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        least: Duration,
    ) -> Option<At<Duration>> {
        let read = |reader: &mut Self, value: &Value<'_>| {
            if let Some(number) = integer(value) {
                let help = format!("did you mean \"{number} s\"? (units: ms, s, min, h, d, w)");
                return reader.take(value, mistake("a time without a unit", help));
            }
            let Some(text) = value.get_ref().as_str() else {
                return reader.wrong_type(value, "a time, as \"5 min\",");
            };
            let time = reader.take(value, value::duration(text))?;
            if time < least {
                let help = format!("at least {} ms", least.as_millis());
                return reader.take(value, mistake(format!("`{text}` is too short"), help));
            }
            Some(time)
        };
        self.optional(section, key, read)
    }

    pub(crate) fn into_error(mut self, file: &str) -> ConfigError {
        self.problems.sort_by_key(|(at, _)| at.start);
        ConfigError { file: file.to_owned(), problems: self.problems.into_iter().map(|(_, p)| p).collect() }
    }
}

pub(crate) fn text<'r, T>(
    read: fn(&str) -> Result<T, Mistake>,
) -> impl FnOnce(&mut Reader<'r>, &Value<'_>) -> Option<T> {
    move |reader, value| match value.get_ref().as_str() {
        Some(text) => reader.take(value, read(text)),
        None => reader.wrong_type(value, "a text in quotes"),
    }
}

pub(crate) fn find<'v, 't>(
    table: &'v DeTable<'t>,
    name: &str,
) -> Option<(&'v Spanned<toml::de::DeString<'t>>, &'v Value<'t>)> {
    table.iter().find(|(key, _)| key.get_ref() == name)
}

fn integer(value: &Value<'_>) -> Option<i128> {
    let integer = value.get_ref().as_integer()?;
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn within(number: i128, range: &RangeInclusive<u64>, unit: &str) -> Result<u64, Mistake> {
    match u64::try_from(number) {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => mistake(
            format!("{number} is out of range"),
            format!("{} to {}{unit}", range.start(), range.end()),
        ),
    }
}

/// What a wrong key most likely stands for.
fn meant(section: &'static str, name: &str, sections: &[&'static str]) -> String {
    let elsewhere: Vec<_> = KEYS.iter().filter(|key| key.name == name).map(|key| key.section).collect();
    if elsewhere.contains(&"") {
        return format!("`{name}` stands at the top of the file, above the first section");
    }
    let mut here: Vec<&str> = keys_of(section).collect();
    if section.is_empty() {
        here.extend(sections.iter().map(|s| bare(s)));
    }
    if let Some(word) = nearest(name, here.iter().copied()) {
        return format!("did you mean `{word}`?");
    }
    if !elsewhere.is_empty() {
        return format!("`{name}` is a key of {}", elsewhere.join(" and "));
    }
    if let Some(key) = nearest(name, KEYS.iter().map(|key| key.name)) {
        let owner = KEYS.iter().find(|k| k.name == key).map_or("", |k| k.section);
        return format!(
            "did you mean `{key}` of {}?",
            if owner.is_empty() { "the top of the file" } else { owner }
        );
    }
    format!("known here: {}", here.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", "))
}

/// What to write for a missing key.
fn example(section: &str, key: &str) -> String {
    let examples: BTreeMap<(&str, &str), &str> = BTreeMap::from([
        (("", "hostname"), "hostname = \"mx.example.org\""),
        (("[[listen]]", "address"), "address = \"[::]:25\""),
        (("[[list]]", "name"), "name = \"zen.example\""),
        (("[[listen]]", "service"), "service = \"smtp\"        # or submission, submissions, lmtp"),
        (("[local]", "domains"), "domains = [\"example.org\"]"),
        (("[virtual]", "domains"), "domains = [\"example.org\"]"),
        (("[virtual]", "mailbox"), "mailbox = \"maildir:/var/mail/virtual/{domain}/{local}\""),
        (
            ("[virtual]", "users"),
            "users = [\"name@example.org\"]        # or \"text:/path\", or \"*\" for every name",
        ),
        (("[[route]]", "domain"), "domain = \"partner.example\"        # or \".partner.example\", or \"*\""),
        (
            ("[[route]]", "via"),
            "via = \"smtp:[10.1.2.3]:2525\"        # or lmtp:…, local, virtual, discard, error:5.1.1 text",
        ),
        (("[tls]", "certificate"), "certificate = \"/etc/postern/tls/fullchain.pem\""),
        (("[tls]", "key"), "key = \"/etc/postern/tls/privkey.pem\""),
    ]);
    format!("write {}", examples.get(&(section, key)).copied().unwrap_or(key))
}
