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
    #[error(
        "{} has no CUDA in it: it is the plain program under another name, or of another version; \
         make it with `cargo build --release --features cuda --bin {PROGRAM}`",
        .0.display()
    )]
    Plain(PathBuf),
    #[error("CUDA is used on Linux only")]
    Platform,
    #[error("the NVIDIA driver is missing ({0}); install it")]
    Driver(String),
    #[error("the NVIDIA driver does not start ({0})")]
    Start(String),
    #[error("the NVIDIA driver finds no GPU; nvidia-smi and CUDA_VISIBLE_DEVICES tell why")]
    Gpu,
    #[error(
        "the NVIDIA driver is too old: it serves CUDA {}, this build needs {}; update the driver",
        version(*found), version(*needed)
    )]
    Version { found: u32, needed: u32 },
    #[error(
        "cuda:{asked}, {}, is too old: its compute capability is {}.{}, the kernels need {}.{} (Ampere) or newer",
        gpu.name, gpu.capability.0, gpu.capability.1, LEAST_CAPABILITY.0, LEAST_CAPABILITY.1
    )]
    Capability { asked: usize, gpu: Gpu },
    #[error(
        "a library of CUDA is missing ({0}); install the CUDA runtime libraries of that version, \
         and put their directory in LD_LIBRARY_PATH"
    )]
    Library(String),
    #[error("there is no cuda:{asked}: this machine has {} (cuda:0{})", count(*gpus), last(*gpus))]
    Ordinal { asked: usize, gpus: usize },
}

impl Missing {
    /// Whether somebody who let the device be chosen wants to know: a GPU and a program for it are there and do not fit.
    pub fn is_told(&self) -> bool {
        !matches!(self, Self::Build(_) | Self::Platform | Self::Driver(_) | Self::Gpu)
    }
}

/// 13010 as 13.1.
fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
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
    pub gpus: Vec<Gpu>,
}

/// A GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
}

/// The least compute capability that the kernels are compiled for (`build.rs`, and `CUDA_COMPUTE_CAP` for candle's).
pub const LEAST_CAPABILITY: (u32, u32) = (8, 0);

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
    let Ok(bytes) = (unsafe { memmap2::Mmap::map(&file) }) else { return Err(Missing::Plain(program)) };
    let Some(needed) = made_for(&bytes) else { return Err(Missing::Plain(program)) };
    check_version(&driver, needed)?;
    for name in libraries(&bytes) {
        library(&name, &here)?;
    }
    Ok(Usable { program, driver })
}

/// That the driver serves the CUDA that a program was made for. The minor version counts: a driver does not take PTX of a
/// newer one than its own, and most of the kernels are PTX.
pub fn check_version(driver: &Driver, needed: u32) -> Result<(), Missing> {
    let found = driver.version;
    if found >= needed { Ok(()) } else { Err(Missing::Version { found, needed }) }
}

/// That GPU `asked` is there and the kernels run on it.
pub fn check_gpu(driver: &Driver, asked: usize) -> Result<(), Missing> {
    match driver.gpus.get(asked) {
        Some(gpu) if gpu.capability >= LEAST_CAPABILITY => Ok(()),
        Some(gpu) => Err(Missing::Capability { asked, gpu: gpu.clone() }),
        None => Err(Missing::Ordinal { asked, gpus: driver.gpus.len() }),
    }
}

/// What stands in a program with kernels before the version of CUDA that they were compiled for.
const MARK: &str = "bertft with kernels for CUDA ";

/// That line of this program.
#[cfg(feature = "cuda")]
#[used]
static MADE_FOR: &str = concat!("bertft with kernels for CUDA ", env!("BERTFT_CUDA_VERSION"), "\0");

/// The version of CUDA that this program was made for, as [`Driver::version`]; `None` without CUDA.
pub fn this_program_is_for() -> Option<u32> {
    #[cfg(feature = "cuda")]
    return made_for(std::hint::black_box(MADE_FOR).as_bytes());
    #[cfg(not(feature = "cuda"))]
    None
}

/// The version of CUDA that a program was made for.
fn made_for(program: &[u8]) -> Option<u32> {
    memchr::memmem::find_iter(program, MARK).find_map(|at| {
        let rest = &program[at + MARK.len()..];
        // The text alone is in the program too, and whatever the linker put behind it.
        let end = rest.iter().position(|b| !b.is_ascii_digit()).filter(|&end| rest[end] == 0)?;
        std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
    })
}

/// Stems of the names of CUDA's libraries that a program may be linked to.
const STEMS: [&str; 5] = ["libcudart.so.", "libcublas.so.", "libcublasLt.so.", "libcurand.so.", "libnvrtc.so."];

/// The CUDA libraries that a program names, with their versions (`libcublas.so.13`).
fn libraries(program: &[u8]) -> Vec<String> {
    let mut names = vec![];
    for stem in STEMS {
        for at in memchr::memmem::find_iter(program, stem) {
            let rest = &program[at + stem.len()..];
            let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
            let name = String::from_utf8_lossy(&program[at..at + stem.len() + digits]).into_owned();
            // A name ends in a zero; the stems above are in the program too, with anything behind them.
            if digits > 0 && rest.get(digits) == Some(&0) && !names.contains(&name) {
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
    use super::{Driver, Gpu, Missing};
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
    /// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    const CAPABILITY: [c_int; 2] = [75, 76];

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
            let get_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status =
                function(handle, c"cuDeviceGetAttribute")?;
            checked(init(0), "cuInit")?;
            let (mut version, mut count) = (0, 0);
            checked(get_version(&mut version), "cuDriverGetVersion")?;
            checked(get_count(&mut count), "cuDeviceGetCount")?;
            let mut gpus = vec![];
            for i in 0..count {
                let (mut device, mut name) = (0, [0u8; 256]);
                checked(get(&mut device, i), "cuDeviceGet")?;
                checked(get_name(name.as_mut_ptr().cast(), 255, device), "cuDeviceGetName")?;
                let name = CStr::from_bytes_until_nul(&name).unwrap_or(c"GPU").to_string_lossy().into_owned();
                let mut capability = [0; 2];
                for (to, attribute) in capability.iter_mut().zip(CAPABILITY) {
                    checked(get_attribute(to, attribute, device), "cuDeviceGetAttribute")?;
                }
                let [major, minor] = capability.map(c_int::unsigned_abs);
                gpus.push(Gpu { name, capability: (major, minor) });
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
        let program = b"\0libcublas.so.13\0libcudart.so.13\0libcublas.so\0libcublas.so.13\0libcurand.so.10\0\
                        libnvrtc.so.9 other text\0libnvrtc.so.1";
        assert_eq!(libraries(program), ["libcudart.so.13", "libcublas.so.13", "libcurand.so.10"]);
        assert_eq!(libraries(b""), [""; 0]);
    }

    fn driver(capabilities: &[(u32, u32)]) -> Driver {
        let gpu = |&capability: &(u32, u32)| Gpu { name: "Imaginary 100".into(), capability };
        Driver { version: 13010, gpus: capabilities.iter().map(gpu).collect() }
    }

    #[test]
    fn gpus_are_there_and_new_enough() {
        assert_eq!(check_gpu(&driver(&[(7, 5), (8, 0), (12, 1)]), 1), Ok(()));
        assert_eq!(check_gpu(&driver(&[(12, 1)]), 0), Ok(()));
        let message = |gpus: &[(u32, u32)], asked| check_gpu(&driver(gpus), asked).unwrap_err().to_string();
        let two = [(9, 0), (7, 5)];
        assert_eq!(message(&two, 2), "there is no cuda:2: this machine has 2 GPUs (cuda:0 to cuda:1)");
        assert_eq!(message(&two[..1], 7), "there is no cuda:7: this machine has 1 GPU (cuda:0)");
        assert_eq!(
            message(&two, 1),
            "cuda:1, Imaginary 100, is too old: its compute capability is 7.5, the kernels need 8.0 (Ampere) or newer"
        );
    }

    #[test]
    fn the_driver_is_for_the_minor_version_too() {
        let check = |needed| check_version(&driver(&[]), needed);
        assert!(check(13000).is_ok() && check(13010).is_ok() && check(12090).is_ok());
        let message = check(13020).unwrap_err().to_string();
        assert!(message.contains("serves CUDA 13.1, this build needs 13.2"), "{message}");
        assert!(check(14000).unwrap_err().is_told() && !Missing::Gpu.is_told());
    }

    #[test]
    fn a_program_says_what_it_was_made_for() {
        let program = format!("\0{MARK}7 other text \0rodata {MARK}13010\0");
        assert_eq!(made_for(program.as_bytes()), Some(13010));
        assert_eq!(made_for(format!("{MARK}of any version").as_bytes()), None);
    }
}
