//! What a listener offers in EHLO.

use postern_config::{Listen, Service};
use postern_smtp::server::{Extension, Extensions};

/// All that fits the service, but for what the configuration takes away.
pub(crate) fn offers(listen: &Listen) -> Extensions {
    let fits = unfit(listen.service).iter().fold(Extensions::all(), |set, extension| set.without(*extension));
    listen.without.iter().fold(fits, |set, extension| set.without(*extension))
}

fn unfit(service: Service) -> &'static [Extension] {
    match service {
        // A stranger does not say how long our disk keeps his mail (RFC 4865 §1), or whose mail comes first
        // (RFC 6710 §5).
        Service::Smtp => &[Extension::FutureRelease, Extension::MtPriority],
        Service::Submission | Service::Submissions => &[],
        // Each recipient has its own reply anyway, and there is no queue to try again.
        Service::Lmtp => &[Extension::FutureRelease, Extension::MtPriority, Extension::Prdr, Extension::Etrn],
    }
}

#[cfg(test)]
mod tests {
    use postern_config::BareNewline;

    use super::*;

    fn of(service: Service, without: &[Extension]) -> Extensions {
        let address = "[::1]:25".parse().unwrap();
        let (bare_newline, proxy) = (BareNewline::Reject, Vec::new());
        offers(&Listen { address, service, bare_newline, proxy, without: without.to_vec() })
    }

    #[test]
    fn by_service_and_less() {
        use Extension::*;
        assert!(!of(Service::Smtp, &[]).has(FutureRelease) && of(Service::Smtp, &[]).has(Dsn));
        assert_eq!(of(Service::Submissions, &[]), Extensions::all());
        assert!(!of(Service::Lmtp, &[]).has(Prdr));
        let less = of(Service::Submission, &[Dsn, EightBitMime]);
        assert!(!less.has(Dsn) && !less.has(SmtpUtf8) && less.has(FutureRelease));
    }
}
