//! Intel AMX in software, so that kernels written with inline `asm!` can be unit-tested on x86-64 Linux machines that
//! lack it. For test builds only.
//!
//! A CPU without AMX raises #UD on a tile instruction, and Linux delivers that as SIGILL. [`install`] registers a
//! handler that decodes the instruction at RIP, performs it on tile registers kept in thread-local storage, and
//! returns to the instruction after it. Machines that have AMX never get here, provided that the process has asked the
//! kernel for the tile state (`arch_prctl(ARCH_REQ_XCOMP_PERM, 18)`): without that permission they raise SIGILL too,
//! but only from the first instruction that touches tile data, *after* LDTILECFG ran natively. The emulator has then
//! seen no configuration and aborts.
//!
//! Implemented, following the operation sections of Intel's manual: LDTILECFG, STTILECFG, TILERELEASE, TILEZERO,
//! TILELOADD, TILELOADDT1, TILESTORED and TDPBF16PS, for palette 1 (8 tiles of 16 rows by 64 bytes) and every
//! addressing mode of these, except for segment overrides and the 32-bit address-size prefix. Any other instruction
//! goes to the SIGILL handler that was there before, or kills the process as it would without the emulator.
//!
//! Where hardware faults (#GP on a bad configuration, #UD on an unconfigured tile or on shapes that do not fit) the
//! emulator writes the reason to stderr and aborts. A tile load or store of unmapped memory is an ordinary SIGSEGV.
//!
//! As a trap costs more than the work, the handler goes on for as long as the next one is a tile instruction as well.

use libc::{REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP};
use libc::{REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP};
use std::arch::{asm, is_x86_feature_detected};
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::{transmute, zeroed};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, OnceLock};

const TILES: usize = 8;
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;
const CONFIG_BYTES: usize = 64;
/// Offsets of the fields of the configuration that LDTILECFG reads.
const PALETTE: usize = 0;
const START_ROW: usize = 1;
const COLSB: usize = 16; // TILES little-endian u16: bytes per row
const ROW_COUNT: usize = 48; // TILES bytes

/// `gregs` index of the general registers, in the order of their encoding.
const GENERAL_REGISTERS: [c_int; 16] = [
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11, REG_R12,
    REG_R13, REG_R14, REG_R15,
];

type Action = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
type Tile = [[u8; ROW_BYTES]; ROWS];

/// The tile state of one thread.
///
/// Whatever lies beyond the configured rows and bytes of a tile is zero: every instruction that writes a tile zeroes
/// the rest of it, and a new configuration zeroes all tiles.
#[repr(C, align(64))]
struct State {
    tiles: [Tile; TILES],
    /// As LDTILECFG read it; all zero (palette 0) while no tiles are configured.
    config: [u8; CONFIG_BYTES],
}

const INIT: State = State { tiles: [[[0; ROW_BYTES]; ROWS]; TILES], config: [0; CONFIG_BYTES] };

thread_local! {
    // Initialised at compile time and without a destructor, so the first access, which happens inside the signal
    // handler, neither allocates nor registers anything.
    static STATE: UnsafeCell<State> = const { UnsafeCell::new(INIT) };
}

static EXECUTED: AtomicU64 = AtomicU64::new(0);
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Registers the emulator for the whole process; calls after the first do nothing.
///
/// # Panics
/// If the CPU lacks AVX2 or FMA, with which TDPBF16PS is computed.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let capable = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        assert!(capable, "the AMX emulator needs AVX2 and FMA");
        // SAFETY: all-zero bytes are a valid `sigaction` (an empty mask, no flags); a null new action only queries; and
        // `on_sigill` has the signature that SA_SIGINFO asks for.
        unsafe {
            let (mut previous, mut action) = (zeroed(), zeroed::<libc::sigaction>());
            // Queried first rather than along with the registration: another thread may trap as soon as that is done.
            assert_eq!(libc::sigaction(libc::SIGILL, ptr::null(), &mut previous), 0, "sigaction");
            PREVIOUS.get_or_init(|| previous);
            action.sa_sigaction = on_sigill as Action as usize;
            // No SA_NODEFER: an illegal instruction within the handler should kill the process, not recurse. No
            // SA_ONSTACK: the 8 KiB alternate stack that std gives its threads is tight once the kernel has put the
            // AVX-512 state there, while a thread's own stack has room (the kernel steps over the red zone).
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, ptr::null_mut()), 0, "sigaction");
        }
    });
}

/// How many tile instructions the emulator has executed so far, in all threads.
pub fn tile_instructions() -> u64 {
    EXECUTED.load(Ordering::Relaxed)
}

/// Ends the process where hardware would raise a fault. In a signal handler neither formatting nor a panic is allowed.
macro_rules! fault {
    ($reason:literal) => {
        die(concat!("AMX emulator: ", $reason, "\n"))
    };
}

#[cold]
fn die(message: &str) -> ! {
    // SAFETY: both are async-signal-safe, and the pointer and length are those of a live string.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        libc::abort()
    }
}

extern "C" fn on_sigill(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo and ucontext, which are ours until the handler returns.
    let (frame, is_fault) = unsafe { (&mut *context.cast::<libc::ucontext_t>(), (*info).si_code > 0) };
    let state = STATE.with(UnsafeCell::get);
    let mut executed = 0;
    // A SIGILL that another process sent says nothing about the instruction at RIP.
    // SAFETY: `state` belongs to this thread, and only this handler touches it; it cannot interrupt itself, since
    // SIGILL is blocked while it runs. RIP is the instruction that trapped, and then the one the CPU would run next.
    while is_fault && unsafe { step(&mut frame.uc_mcontext.gregs, &mut *state) } {
        executed += 1;
    }
    EXECUTED.fetch_add(executed, Ordering::Relaxed);
    if executed == 0 {
        // SAFETY: the arguments are those of this handler.
        unsafe { pass_on(signal, info, context, is_fault) }
    }
}

/// Gives a signal that is none of the emulator's to the handler or default action that was there before.
///
/// # Safety
/// To be called by the signal handler, with its own arguments.
#[cold]
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, is_fault: bool) {
    // Set before the handler was registered, so the fallback is never used.
    let (handler, flags) = PREVIOUS.get().map_or((libc::SIG_DFL, 0), |action| (action.sa_sigaction, action.sa_flags));
    // SAFETY: `signal` and `raise` are async-signal-safe. Any other address is a handler that the kernel accepted, and
    // the flag says of which signature.
    unsafe {
        match handler {
            libc::SIG_IGN if !is_fault => {}
            // The kernel does not let a process ignore a fault either. A fault recurs, and now kills, when the handler
            // returns; a signal that was sent has to be sent again.
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::signal(signal, libc::SIG_DFL);
                if !is_fault {
                    libc::raise(signal);
                }
            }
            _ if flags & libc::SA_SIGINFO != 0 => transmute::<usize, Action>(handler)(signal, info, context),
            _ => transmute::<usize, extern "C" fn(c_int)>(handler)(signal),
        }
    }
}

/// Decodes and executes the instruction at RIP and moves RIP past it; false, with nothing changed, if it is not a tile
/// instruction.
///
/// All of them are `C4 RXBmmmmm WvvvvLpp opcode ModRM [SIB] [disp]` with m = 2 and W = L = 0; R, X, B and vvvv are
/// stored inverted. The two-byte VEX prefix (C5) implies opcode map 0F; theirs, 0F38, takes the three-byte one.
///
/// # Safety
/// RIP must point at code that the CPU would execute next, and the instruction's memory operands must be as valid as
/// the instruction itself requires.
unsafe fn step(registers: &mut [libc::greg_t; 23], state: &mut State) -> bool {
    let rip = registers[REG_RIP as usize] as usize;
    // SAFETY: bytes are read one at a time and each only if those before it say that it belongs to the instruction, so
    // this never reads beyond the instruction, where the next page may be unmapped.
    let byte = |offset: usize| unsafe { *(rip.wrapping_add(offset) as *const u8) };
    if byte(0) != 0xC4 {
        return false;
    }
    let (vex1, vex2) = (byte(1), byte(2));
    // R would extend the tile number (or the opcode, where ModRM.reg belongs to it) past what exists.
    if vex1 & 0x9F != 0x82 || vex2 & 0x84 != 0 {
        return false;
    }
    // All instructions of this map have a ModRM byte.
    let (opcode, modrm) = (byte(3), byte(4));
    let (x, b, vvvv, pp) = ((!vex1 >> 6) & 1, (!vex1 >> 5) & 1, (!vex2 >> 3) & 15, vex2 & 3);
    let (mode, reg, rm) = (modrm >> 6, (modrm >> 3) & 7, modrm & 7);
    let (tile, mut length) = (usize::from(reg), 5);
    if mode == 3 {
        match (opcode, pp) {
            (0x49, 0) if modrm == 0xC0 && vvvv == 0 && b == 0 => *state = INIT, // TILERELEASE
            (0x49, 3) if rm == 0 && vvvv == 0 && b == 0 => tile_zero(state, tile),
            (0x5C, 2) if vvvv < 8 && b == 0 => tdpbf16ps(state, tile, usize::from(rm), usize::from(vvvv)),
            _ => return false,
        }
    } else {
        // What can follow the opcode is settled before the operand is decoded, as that reads on.
        let is_config = match (opcode, pp) {
            (0x49, 0 | 1) if reg == 0 && vvvv == 0 => true,
            // Tile loads and stores need a SIB byte.
            (0x4B, 1..=3) if rm == 4 && vvvv == 0 => false,
            _ => return false,
        };
        let general = |number: u8| registers[GENERAL_REGISTERS[usize::from(number)] as usize] as usize;
        // An rm or SIB base of 5 with mode 0 stands for disp32, relative to the next instruction or absolute.
        let (mut start, mut stride, mut base) = (0usize, 0usize, rm);
        if rm == 4 {
            let sib = byte(length);
            length += 1;
            base = sib & 7;
            let index = (x << 3) | ((sib >> 3) & 7);
            if index != 4 {
                stride = general(index) << (sib >> 6);
            }
        }
        let no_base = mode == 0 && base == 5;
        if !no_base {
            start = general((b << 3) | base);
        }
        if mode == 1 {
            start = start.wrapping_add_signed((byte(length) as i8).into());
            length += 1;
        } else if mode == 2 || no_base {
            let offset = i32::from_le_bytes([byte(length), byte(length + 1), byte(length + 2), byte(length + 3)]);
            start = start.wrapping_add_signed(offset as isize);
            length += 4;
        }
        if no_base && rm == 5 {
            start = start.wrapping_add(rip).wrapping_add(length);
        }
        // SAFETY: the caller vouches for the memory operand.
        unsafe {
            match (is_config, pp) {
                (true, 0) => load_config(state, start.wrapping_add(stride) as *const u8),
                (true, _) => copy(state.config.as_ptr(), start.wrapping_add(stride) as *mut u8, CONFIG_BYTES),
                (false, 2) => tile_store(state, tile, start, stride),
                (false, _) => tile_load(state, tile, start, stride), // TILELOADDT1 differs in its cache hint only
            }
        }
    }
    registers[REG_RIP as usize] = rip.wrapping_add(length) as libc::greg_t;
    true
}

/// The configured rows and bytes per row of a tile, for an instruction that takes rows as elements of `unit` bytes.
fn shape(state: &State, tile: usize, unit: usize) -> (usize, usize) {
    // LDTILECFG made sure that both or neither are zero, and that the high byte of the second is.
    let (rows, bytes) = (state.config[ROW_COUNT + tile].into(), state.config[COLSB + 2 * tile].into());
    if state.config[PALETTE] == 0 {
        fault!("tile instruction before LDTILECFG (#UD)");
    }
    if rows == 0 {
        fault!("tile that the configuration leaves out (#UD)");
    }
    if bytes % unit != 0 {
        fault!("bytes per row of a tile not a multiple of 4 (#UD)");
    }
    (rows, bytes)
}

/// memcpy itself rather than `ptr::copy_nonoverlapping`, whose checks in debug builds would turn the SIGSEGV of a null
/// pointer into a panic within a signal handler.
///
/// # Safety
/// As for memcpy.
unsafe fn copy(source: *const u8, target: *mut u8, bytes: usize) {
    // SAFETY: as the caller promises.
    unsafe { libc::memcpy(target.cast(), source.cast(), bytes) };
}

/// # Safety
/// 64 bytes at `source` must be readable.
unsafe fn load_config(state: &mut State, source: *const u8) {
    let mut config = [0; CONFIG_BYTES];
    // SAFETY: as the caller promises.
    unsafe { copy(source, config.as_mut_ptr(), CONFIG_BYTES) };
    *state = INIT;
    match config[PALETTE] {
        0 => return, // The same as TILERELEASE, whatever the other fields hold.
        1 => {}
        _ => fault!("LDTILECFG: palette other than 0 and 1 (#GP)"),
    }
    let reserved = [START_ROW + 1..COLSB, COLSB + 2 * TILES..ROW_COUNT, ROW_COUNT + TILES..CONFIG_BYTES];
    if reserved.into_iter().flatten().any(|index| config[index] != 0) {
        fault!("LDTILECFG: reserved byte not zero (#GP)");
    }
    for tile in 0..TILES {
        let bytes = u16::from_le_bytes([config[COLSB + 2 * tile], config[COLSB + 2 * tile + 1]]);
        let rows = config[ROW_COUNT + tile];
        if usize::from(bytes) > ROW_BYTES || usize::from(rows) > ROWS {
            fault!("LDTILECFG: tile of more than 16 rows or 64 bytes per row (#GP)");
        }
        if (bytes == 0) != (rows == 0) {
            fault!("LDTILECFG: tile with rows but no bytes per row, or the reverse (#GP)");
        }
    }
    state.config = config;
}

fn tile_zero(state: &mut State, tile: usize) {
    shape(state, tile, 1);
    state.tiles[tile] = [[0; ROW_BYTES]; ROWS];
    state.config[START_ROW] = 0;
}

/// The rows that a load or store transfers, and the bytes of each.
fn transfer(state: &mut State, tile: usize) -> (std::ops::Range<usize>, usize) {
    let (rows, bytes) = shape(state, tile, 4);
    let start_row = usize::from(state.config[START_ROW]);
    if start_row >= rows {
        fault!("start row beyond the rows of a tile (#UD)");
    }
    // Hardware resets it when the instruction is done. It would note there how far it came when a row faults; here the
    // copy itself resumes if a SIGSEGV handler mends the mapping.
    state.config[START_ROW] = 0;
    (start_row..rows, bytes)
}

/// # Safety
/// The configured bytes of row `i` must be readable at `start + i * stride`, for all rows of the tile.
unsafe fn tile_load(state: &mut State, tile: usize, start: usize, stride: usize) {
    let (rows, bytes) = transfer(state, tile);
    let tile = &mut state.tiles[tile];
    tile[rows.start..].fill([0; ROW_BYTES]);
    for row in rows {
        let source = start.wrapping_add(row.wrapping_mul(stride)) as *const u8;
        // SAFETY: as the caller promises; `bytes` is at most the length of a row. The program knows no pointer to the
        // tile state, so the two do not overlap.
        unsafe { copy(source, tile[row].as_mut_ptr(), bytes) };
    }
}

/// # Safety
/// The configured bytes of row `i` must be writable at `start + i * stride`, for all rows of the tile.
unsafe fn tile_store(state: &mut State, tile: usize, start: usize, stride: usize) {
    let (rows, bytes) = transfer(state, tile);
    for row in rows {
        let target = start.wrapping_add(row.wrapping_mul(stride)) as *mut u8;
        // SAFETY: as in `tile_load`.
        unsafe { copy(state.tiles[tile][row].as_ptr(), target, bytes) };
    }
}

/// `c[m][n] += Σk a[m][2k] * b[k][2n] + a[m][2k+1] * b[k][2n+1]`, with `a` and `b` of bf16 and `c` of f32.
///
/// Intel specifies the arithmetic to the bit: per element of `c`, the even and the odd products are summed separately,
/// each with one FMA per k in ascending order from zero; then the two sums are added, and the result to `c`. All steps
/// round to nearest even, take denormal inputs for zero and flush denormal results to zero, whatever MXCSR holds. (Only
/// the choice among several NaNs is left open.) Compiled Rust may not run with denormals switched off, so this is
/// assembly from where MXCSR is set to where it is restored, which also makes it fast in unoptimised builds.
fn tdpbf16ps(state: &mut State, c: usize, a: usize, b: usize) {
    if c == a || c == b || a == b {
        fault!("TDPBF16PS: operands not three different tiles (#UD)");
    }
    let [(rows, bytes), (a_rows, a_bytes), (b_rows, b_bytes)] = [c, a, b].map(|tile| shape(state, tile, 4));
    if rows != a_rows || bytes != b_bytes || a_bytes / 4 != b_rows {
        fault!("TDPBF16PS: shapes of the tiles do not fit (#UD)");
    }
    let (a_start, b_start, c_start) = (state.tiles[a].as_ptr(), state.tiles[b].as_ptr(), state.tiles[c].as_mut_ptr());
    // MXCSR during the loop: all exceptions masked, DAZ, FTZ, round to nearest; and room for its value before.
    let mut mxcsr = [0x9FC0u32, 0];
    // SAFETY: `install` checked for AVX2 and FMA. Each of the loops runs at least once, as no shape is zero, and reads
    // or writes whole rows within the three tiles. MXCSR is what it was, sticky exception flags included, at the end.
    unsafe {
        asm!(
            "stmxcsr [{mxcsr} + 4]", "ldmxcsr [{mxcsr}]",
            // A mask that selects the odd bf16 of each pair; a shift by 16 makes an f32 of the even one.
            "vpcmpeqd ymm10, ymm10, ymm10", "vpslld ymm10, ymm10, 16",
            "2:", // For each row of c: even sums in ymm0 and ymm1, odd sums in ymm2 and ymm3.
            "vpxor xmm0, xmm0, xmm0", "vpxor xmm1, xmm1, xmm1", "vpxor xmm2, xmm2, xmm2", "vpxor xmm3, xmm3, xmm3",
            "mov {b}, {b_start}", "xor {k:e}, {k:e}",
            "3:", // For each k.
            "vpbroadcastd ymm5, dword ptr [{a} + 4*{k}]", "vpslld ymm4, ymm5, 16", "vpand ymm5, ymm5, ymm10",
            "vmovdqa ymm7, ymmword ptr [{b}]", "vpslld ymm6, ymm7, 16", "vpand ymm7, ymm7, ymm10",
            "vmovdqa ymm9, ymmword ptr [{b} + 32]", "vpslld ymm8, ymm9, 16", "vpand ymm9, ymm9, ymm10",
            "vfmadd231ps ymm0, ymm4, ymm6", "vfmadd231ps ymm1, ymm4, ymm8",
            "vfmadd231ps ymm2, ymm5, ymm7", "vfmadd231ps ymm3, ymm5, ymm9",
            "add {b}, 64", "inc {k}", "cmp {k}, {pairs}", "jne 3b",
            "vaddps ymm0, ymm0, ymm2", "vaddps ymm0, ymm0, ymmword ptr [{c}]", "vmovaps ymmword ptr [{c}], ymm0",
            "vaddps ymm1, ymm1, ymm3", "vaddps ymm1, ymm1, ymmword ptr [{c} + 32]",
            "vmovaps ymmword ptr [{c} + 32], ymm1",
            "add {a}, 64", "add {c}, 64", "dec {rows}", "jnz 2b",
            "ldmxcsr [{mxcsr} + 4]",
            mxcsr = in(reg) mxcsr.as_mut_ptr(), b_start = in(reg) b_start, pairs = in(reg) b_rows,
            a = inout(reg) a_start => _, c = inout(reg) c_start => _, rows = inout(reg) rows => _,
            b = out(reg) _, k = out(reg) _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _,
            options(nostack),
        );
    }
    // Beyond the configured columns both sources are zero, yet zero times an infinity or NaN in `a` is NaN.
    for row in &mut state.tiles[c][..rows] {
        row[bytes..].fill(0);
    }
    state.config[START_ROW] = 0;
}
