//! Providers, each with the options that it takes.

use sd_runtime::engine::{Ep, EpOption, EpOptionError};

/// Each provider with the options, or with none if it takes one of them not.
///
/// # Errors
/// An option has a value that makes no sense, or no provider takes the options.
pub(crate) fn with_options<'a>(
    eps: &[Ep],
    options: &'a [EpOption],
) -> Result<Vec<(Ep, &'a [EpOption])>, EpOptionError> {
    let mut providers: Vec<(Ep, &[EpOption])> = Vec::new();
    let mut refused = None;
    for &ep in eps {
        match ep.check(options) {
            Ok(_) => providers.push((ep, options)),
            Err(error @ EpOptionError::NotTaken { .. }) => {
                providers.push((ep, &[]));
                refused = refused.or(Some(error));
            }
            Err(error) => return Err(error),
        }
    }
    match refused {
        Some(error) if providers.iter().all(|(_, options)| options.is_empty()) => Err(error),
        _ => Ok(providers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_to_providers_that_take_them() {
        let options: Vec<EpOption> = vec!["num_streams=1".parse().unwrap()];
        let counts = |eps: &[Ep]| {
            let with = with_options(eps, &options)?;
            Ok::<_, EpOptionError>(with.iter().map(|(_, all)| all.len()).collect::<Vec<_>>())
        };
        assert_eq!(counts(&[Ep::Cpu, Ep::OpenVino]).unwrap(), [0, 1]);
        assert!(counts(&[Ep::Cpu]).is_err());
        let none = with_options(&[Ep::Cpu], &[]).unwrap();
        assert!(none[0].1.is_empty());
    }
}
