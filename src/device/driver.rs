//! Whether this machine can compute on NVIDIA GPUs: asked of the driver at run time, by a program that is linked to none
//! of CUDA's libraries and so starts everywhere.

use std::path::{Path, PathBuf};

/// The program with the CUDA kernels, which lies beside the plain one.
pub const PROGRAM: &str = "bertft-cuda";

/// Why CUDA cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error(
        "the build with CUDA, {PROGRAM}, is not beside this program in {}; \
         make it with `cargo build --release --features cuda --bin {PROGRAM}` and put it there",
        .0.display()
    )]
    Build(PathBuf),
    #[error("CUDA is used on Linux only")]
    Platform,
    #[error("the NVIDIA driver is missing ({0}); install it")]
    Driver(String),
    #[error("the NVIDIA driver does not start ({0})")]
    Start(String),
    #[error("the NVIDIA driver finds no GPU; nvidia-smi and CUDA_VISIBLE_DEVICES tell why")]
    Gpu,
    #[error("the NVIDIA driver is too old: it serves CUDA {found}, this build needs {needed}.0; update the driver")]
    Version { found: String, needed: u32 },
    #[error(
        "a library of CUDA is missing ({0}); install the CUDA runtime libraries of that version, \
         and put their directory in LD_LIBRARY_PATH"
    )]
    Library(String),
    #[error("there is no cuda:{asked}: this machine has {} (cuda:0{})", count(*gpus), last(*gpus))]
    Ordinal { asked: usize, gpus: usize },
}

fn count(gpus: usize) -> String {
    if gpus == 1 { "1 GPU".into() } else { format!("{gpus} GPUs") }
}

fn last(gpus: usize) -> String {
    if gpus > 1 { format!(" to cuda:{}", gpus - 1) } else { String::new() }
}

/// What the driver says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// The newest CUDA that it serves, as 1000 · major + 10 · minor.
    pub version: u32,
    /// Names of the GPUs.
    pub gpus: Vec<String>,
}

/// A CUDA program that this machine can run, and what the driver says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usable {
    pub program: PathBuf,
    pub driver: Driver,
}

/// Looks for everything that computing on a GPU takes, cheapest first.
pub fn usable() -> Result<Usable, Missing> {
    let here = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)).unwrap_or_default();
    let program = here.join(PROGRAM);
    let Ok(file) = std::fs::File::open(&program) else { return Err(Missing::Build(here)) };
    let driver = driver()?;
    // SAFETY: the file is only looked at; were it changed meanwhile, other bytes would be seen.
    let needed = unsafe { memmap2::Mmap::map(&file) }.map_or(vec![], |bytes| libraries(&bytes));
    if let Some(needed) = needed.iter().filter_map(|name| name.strip_prefix("libcudart.so.")?.parse().ok()).max()
        && driver.version < 1000 * needed
    {
        let found = format!("{}.{}", driver.version / 1000, driver.version % 1000 / 10);
        return Err(Missing::Version { found, needed });
    }
    for name in &needed {
        library(name, &here)?;
    }
    Ok(Usable { program, driver })
}

/// That GPU `asked` is there.
pub fn check_ordinal(driver: &Driver, asked: usize) -> Result<(), Missing> {
    let gpus = driver.gpus.len();
    if asked < gpus { Ok(()) } else { Err(Missing::Ordinal { asked, gpus }) }
}

/// Stems of the names of CUDA's libraries that a program may be linked to.
const STEMS: [&str; 5] = ["libcudart.so.", "libcublas.so.", "libcublasLt.so.", "libcurand.so.", "libnvrtc.so."];

/// The CUDA libraries that a program names, with their versions (`libcublas.so.13`).
fn libraries(program: &[u8]) -> Vec<String> {
    let mut names = vec![];
    for stem in STEMS {
        for at in memchr::memmem::find_iter(program, stem) {
            let digits = program[at + stem.len()..].iter().take_while(|b| b.is_ascii_digit()).count();
            let name = String::from_utf8_lossy(&program[at..at + stem.len() + digits]).into_owned();
            if digits > 0 && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

#[cfg(target_os = "linux")]
pub use linux::driver;
#[cfg(target_os = "linux")]
use linux::library;

#[cfg(not(target_os = "linux"))]
pub fn driver() -> Result<Driver, Missing> {
    Err(Missing::Platform)
}

#[cfg(not(target_os = "linux"))]
fn library(_: &str, _: &Path) -> Result<(), Missing> {
    Err(Missing::Platform)
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Driver, Missing};
    use libc::{RTLD_LAZY, RTLD_LOCAL, c_char, c_int, c_void, dlclose, dlerror, dlopen, dlsym};
    use std::ffi::{CStr, CString};
    use std::path::Path;

    /// Opens a library by name, or says why not.
    fn open(name: &str) -> Result<*mut c_void, String> {
        let name = CString::new(name).map_err(|e| e.to_string())?;
        // SAFETY: a terminated name; what the library runs at its start is the system's.
        let handle = unsafe { dlopen(name.as_ptr(), RTLD_LAZY | RTLD_LOCAL) };
        if handle.is_null() { Err(last_error()) } else { Ok(handle) }
    }

    fn last_error() -> String {
        // SAFETY: the message, if any, stays until the next call of this thread.
        unsafe {
            let message = dlerror();
            if message.is_null() {
                "no reason given".into()
            } else {
                CStr::from_ptr(message).to_string_lossy().into_owned()
            }
        }
    }

    /// That a library is found by its name or in `beside`.
    pub fn library(name: &str, beside: &Path) -> Result<(), Missing> {
        let handle = open(name).or_else(|why| open(&beside.join(name).to_string_lossy()).map_err(|_| why));
        // SAFETY: opened just now, and nothing of it is used.
        handle.map(|handle| _ = unsafe { dlclose(handle) }).map_err(Missing::Library)
    }

    /// A function of the driver.
    ///
    /// # Safety
    /// `F` is the type of that function.
    unsafe fn function<F: Copy>(handle: *mut c_void, name: &CStr) -> Result<F, Missing> {
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>(), "a function pointer");
        // SAFETY: an open library and a terminated name.
        let at = unsafe { dlsym(handle, name.as_ptr()) };
        if at.is_null() {
            return Err(Missing::Start(last_error()));
        }
        // SAFETY: by the caller's promise.
        Ok(unsafe { std::mem::transmute_copy(&at) })
    }

    type Status = c_int;
    const NO_DEVICE: Status = 100;

    fn checked(status: Status, what: &str) -> Result<(), Missing> {
        match status {
            0 => Ok(()),
            NO_DEVICE => Err(Missing::Gpu),
            error => Err(Missing::Start(format!("{what}: error {error}"))),
        }
    }

    /// Asks the driver for its version and GPUs. It stays loaded.
    pub fn driver() -> Result<Driver, Missing> {
        let handle = open("libcuda.so.1").map_err(Missing::Driver)?;
        // SAFETY: types as in the driver's API, whose functions write to the places that they are given.
        unsafe {
            let init: unsafe extern "C" fn(u32) -> Status = function(handle, c"cuInit")?;
            let get_version: unsafe extern "C" fn(*mut c_int) -> Status = function(handle, c"cuDriverGetVersion")?;
            let get_count: unsafe extern "C" fn(*mut c_int) -> Status = function(handle, c"cuDeviceGetCount")?;
            let get: unsafe extern "C" fn(*mut c_int, c_int) -> Status = function(handle, c"cuDeviceGet")?;
            let get_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Status =
                function(handle, c"cuDeviceGetName")?;
            checked(init(0), "cuInit")?;
            let (mut version, mut count) = (0, 0);
            checked(get_version(&mut version), "cuDriverGetVersion")?;
            checked(get_count(&mut count), "cuDeviceGetCount")?;
            let mut gpus = vec![];
            for i in 0..count {
                let (mut device, mut name) = (0, [0u8; 256]);
                checked(get(&mut device, i), "cuDeviceGet")?;
                checked(get_name(name.as_mut_ptr().cast(), 255, device), "cuDeviceGetName")?;
                let name = CStr::from_bytes_until_nul(&name).unwrap_or(c"GPU");
                gpus.push(name.to_string_lossy().into_owned());
            }
            if gpus.is_empty() {
                return Err(Missing::Gpu);
            }
            Ok(Driver { version: version.unsigned_abs(), gpus })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_by_name_and_version() {
        let program = b"\0libcublas.so.13\0libcudart.so.13\0libcublas.so\0libcublas.so.13\0libcurand.so.10";
        assert_eq!(libraries(program), ["libcudart.so.13", "libcublas.so.13", "libcurand.so.10"]);
        assert_eq!(libraries(b""), [""; 0]);
    }

    #[test]
    fn ordinals() {
        let driver = |n| Driver { version: 13000, gpus: vec!["GPU".into(); n] };
        assert_eq!(check_ordinal(&driver(2), 1), Ok(()));
        let message = |n, asked| check_ordinal(&driver(n), asked).unwrap_err().to_string();
        assert_eq!(message(2, 2), "there is no cuda:2: this machine has 2 GPUs (cuda:0 to cuda:1)");
        assert_eq!(message(1, 7), "there is no cuda:7: this machine has 1 GPU (cuda:0)");
    }
}
