//! STATUS: would ADD work? Called by `run.rs`. Runtimes ask every few seconds for ever, so it
//! reads `subnet.env` and the names of the allocation files, and takes no lock.

use crate::add;
use crate::allocations::{Level, Store};
use crate::error::{Error, Exhaustion};
use crate::request::Config;

/// Fails with what keeps the next ADD from working.
pub fn status(config: &Config) -> Result<(), Error> {
    ready(config).map_err(|error| Error::NotReady(Box::new(error)))
}

fn ready(config: &Config) -> Result<(), Error> {
    let env = add::subnet_env(&config.subnet_file)?;
    config.options.fit(&env)?;
    let store = Store::new(&config.data_dir, &config.network);
    for pool in add::pools(&env) {
        let Level { own, foreign } = store.level(pool)?;
        if (own + foreign) as u128 >= pool.usable() {
            return Err(Error::Exhausted(Exhaustion {
                subnet: pool.subnet(),
                usable: pool.usable(),
                taken: own,
                foreign,
                // Which files cannot be read only ADD tells: it would have to read them all.
                unreadable: Vec::new(),
            }));
        }
    }
    Ok(())
}
