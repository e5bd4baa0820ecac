//! A fork-join pool for row-partitioned kernels.
//!
//! One call hands every thread the same closure and returns when all have finished it. Threads take
//! shares of output rows from a shared counter, so uneven cores balance themselves. One thread
//! computes a row from start to end, so the result does not depend on which thread took the row.
//!
//! The owner (the calling thread) and the workers synchronise on one state word: the number of the
//! job, whether the job is open, and the number of workers in it.
//!
//! ```text
//!  owner:   writes `work` -> opens job n -> takes shares -> closes it -> waits for active workers
//!                                |                               |
//!  worker:  spins, sleeps -> joins open job (active + 1) -> takes shares -> leaves (active - 1)
//!                            a closed job cannot be joined     the last worker wakes the owner
//! ```
//!
//! The owner never waits for a worker that has not joined. If the system does not run a worker on a
//! busy machine, the job loses that worker's help and nothing more. A worker that is stopped in the
//! middle of a share does hold the job up; after that the owner works alone for a while. Idle
//! threads spin for a short time and then sleep.
//!
//! A process that inherits a pool over `fork` works alone. Only the thread that called `fork`
//! exists in it. The pool was at rest, so no worker was in a job, and none joins one. Dropping the
//! pool there forgets the workers.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use rwkv_edge_kernels::default_float_environment;

/// Stack of one worker. Kernels keep a few KiB of scratch on it.
pub const WORKER_STACK_BYTES: usize = 256 * 1024;

/// Time that an idle thread spins before it sleeps. It is longer than the serial part between two
/// matvecs.
const SPIN: Duration = Duration::from_micros(40);

/// Shortest wait for workers that counts as late. A late wait is also longer than twice the
/// caller's own part of the job; cores of different speed do not differ that much. It shows that
/// the system runs other programs on the workers' cores.
const LATE: Duration = Duration::from_millis(1);

/// Number of jobs that the caller does alone after a late worker: some tokens' worth. It begins at
/// the first number, doubles each time that workers are late again soon, and ends at the second.
const SERIAL_JOBS: [u32; 2] = [256, 1 << 16];

type Work = dyn Fn() + Sync;

/// Work on a range of the rows of a matrix:
/// `(index of the matrix, start of the range, that range of each row)`.
pub type RangeWork<'a> = dyn Fn(usize, usize, &mut dyn Iterator<Item = &mut [f32]>) + Sync + 'a;

/// Exclusive access to the first `len` elements of each row of a matrix `[rows, stride]`.
pub struct RowsMut<'a> {
    data: &'a mut [f32],
    stride: usize,
    rows: usize,
    len: usize,
}

impl<'a> RowsMut<'a> {
    /// All rows of `data`, each whole.
    pub fn new(data: &'a mut [f32], stride: usize) -> Self {
        let rows = data.len().checked_div(stride).unwrap_or(0);
        Self { data, stride, rows, len: stride }
    }

    /// The first `len` elements of the first `rows` rows.
    ///
    /// # Panics
    /// If there are fewer rows or elements.
    pub fn cut(self, rows: usize, len: usize) -> Self {
        assert!(rows <= self.rows || len == 0, "{rows} rows of {}", self.rows);
        assert!(len <= self.stride, "{len} elements of {}", self.stride);
        Self { rows, len, ..self }
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn part(&mut self, rows: Range<usize>) -> RowsMut<'_> {
        assert!(rows.end <= self.rows, "rows to {} of {}", rows.end, self.rows);
        let Self { stride, len, .. } = *self;
        let data = &mut self.data[rows.start * stride..rows.end * stride];
        RowsMut { data, stride, rows: rows.len(), len }
    }

    /// Each row as a piece.
    pub fn rows(self) -> impl Pieces<Piece = &'a mut [f32]> {
        let Self { data, stride, rows, len } = self;
        Map::new(Cut::new(&mut data[..rows * stride], stride), move |row: &'a mut [f32]| &mut row[..len])
    }

    /// Pieces of `width` columns of all rows; the last may have fewer.
    ///
    /// # Panics
    /// If `width` is 0.
    pub fn columns(self, width: usize) -> Columns<'a, f32> {
        let Self { data, stride, rows, len } = self;
        Columns::new(data, [rows, stride], len, width)
    }
}

/// Exclusive access to memory that is cut into pieces, which threads work on at the same time.
///
/// # Safety
/// Pieces of different indices do not overlap.
pub unsafe trait Pieces: Sync {
    /// Exclusive access to one piece.
    type Piece;

    /// Number of pieces.
    fn count(&self) -> usize;

    /// Piece `index`.
    ///
    /// # Safety
    /// `index` is below [`count`](Self::count), and no index is given twice.
    unsafe fn piece(&self, index: usize) -> Self::Piece;
}

/// A slice as pieces of equal length; the last may be shorter.
pub struct Cut<'a, T> {
    data: Part<T>,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> Cut<'a, T> {
    /// Pieces of `len` elements.
    ///
    /// # Panics
    /// If `len` is 0.
    pub fn new(slice: &'a mut [T], len: usize) -> Self {
        assert!(len > 0, "pieces of no elements");
        Self { data: Part::new(slice), len, borrow: PhantomData }
    }
}

// SAFETY: piece `i` has the elements from `i * len` on, up to the next piece.
unsafe impl<'a, T: Send + Sync> Pieces for Cut<'a, T> {
    type Piece = &'a mut [T];

    fn count(&self) -> usize {
        self.data.len.div_ceil(self.len)
    }

    unsafe fn piece(&self, index: usize) -> &'a mut [T] {
        let start = index * self.len;
        // SAFETY: the borrow lasts for 'a, and no other piece has these elements.
        unsafe { self.data.chunk(start, self.len.min(self.data.len - start)) }
    }
}

/// A matrix as pieces that are the same range of columns of every row.
pub struct Columns<'a, T> {
    data: Part<T>,
    rows: usize,
    stride: usize,
    len: usize,
    width: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> Columns<'a, T> {
    /// Pieces of `width` of the first `len` columns of `data`, `[rows, stride]`.
    ///
    /// # Panics
    /// If `width` is 0, `len` exceeds the stride, or `data` is too short.
    pub fn new(data: &'a mut [T], [rows, stride]: [usize; 2], len: usize, width: usize) -> Self {
        assert!(width > 0 && len <= stride, "{width} of {len} columns of {stride}");
        Self { data: Part::new(&mut data[..rows * stride]), rows, stride, len, width, borrow: PhantomData }
    }
}

// SAFETY: piece `i` has the columns from `i * width` on, up to the next piece, and a row has at
// least `len` elements.
unsafe impl<'a, T: Send + Sync> Pieces for Columns<'a, T> {
    type Piece = Block<'a, T>;

    fn count(&self) -> usize {
        self.len.div_ceil(self.width)
    }

    unsafe fn piece(&self, index: usize) -> Block<'a, T> {
        let start = index * self.width;
        let columns = start..self.len.min(start + self.width);
        let data = Part { ..self.data };
        Block { data, rows: self.rows, stride: self.stride, columns, borrow: PhantomData }
    }
}

/// Exclusive access to a range of columns of each row of a matrix.
pub struct Block<'a, T> {
    data: Part<T>,
    rows: usize,
    stride: usize,
    columns: Range<usize>,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> Block<'_, T> {
    /// The range of row `row`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the borrow outlives `self`, this piece alone has these columns, and it is borrowed
        // exclusively.
        unsafe { self.data.chunk(row * self.stride + self.columns.start, self.columns.len()) }
    }
}

/// Pieces, and what is made of each.
pub struct Map<P, F> {
    pieces: P,
    make: F,
}

impl<P: Pieces, R, F: Fn(P::Piece) -> R + Sync> Map<P, F> {
    /// `make(piece)` for each piece.
    pub fn new(pieces: P, make: F) -> Self {
        Self { pieces, make }
    }
}

// SAFETY: a safe function makes each from one piece of `pieces`.
unsafe impl<P: Pieces, R, F: Fn(P::Piece) -> R + Sync> Pieces for Map<P, F> {
    type Piece = R;

    fn count(&self) -> usize {
        self.pieces.count()
    }

    unsafe fn piece(&self, index: usize) -> R {
        // SAFETY: the caller's promise.
        (self.make)(unsafe { self.pieces.piece(index) })
    }
}

/// The number of pieces that all have.
fn common_count(mut counts: impl Iterator<Item = usize>) -> usize {
    let first = counts.next().unwrap_or(0);
    assert!(counts.all(|count| count == first), "not equally many pieces");
    first
}

// SAFETY: the elements are exclusive borrows of their own.
unsafe impl<P: Pieces, const N: usize> Pieces for [P; N] {
    type Piece = [P::Piece; N];

    fn count(&self) -> usize {
        common_count(self.iter().map(P::count))
    }

    unsafe fn piece(&self, index: usize) -> [P::Piece; N] {
        // SAFETY: the caller's promise.
        self.each_ref().map(|pieces| unsafe { pieces.piece(index) })
    }
}

// SAFETY: as for arrays.
unsafe impl<P: Pieces, const N: usize> Pieces for ArrayVec<P, N> {
    type Piece = ArrayVec<P::Piece, N>;

    fn count(&self) -> usize {
        common_count(self.iter().map(P::count))
    }

    unsafe fn piece(&self, index: usize) -> ArrayVec<P::Piece, N> {
        // SAFETY: the caller's promise.
        self.iter().map(|pieces| unsafe { pieces.piece(index) }).collect()
    }
}

/// Implements [`Pieces`] for tuples.
macro_rules! tuple_of_pieces {
    ($($name:ident)*) => {
        // SAFETY: as for arrays.
        #[allow(non_snake_case, reason = "a variable is named after its type")]
        unsafe impl<$($name: Pieces),*> Pieces for ($($name,)*) {
            type Piece = ($($name::Piece,)*);

            fn count(&self) -> usize {
                let ($($name,)*) = self;
                common_count([$($name.count()),*].into_iter())
            }

            unsafe fn piece(&self, index: usize) -> Self::Piece {
                let ($($name,)*) = self;
                // SAFETY: the caller's promise.
                ($(unsafe { $name.piece(index) },)*)
            }
        }
    };
}

tuple_of_pieces!(A B);
tuple_of_pieces!(A B C);
tuple_of_pieces!(A B C D);

/// Keeps its content on cache lines of its own: two lines, for CPUs that fetch lines in pairs.
#[repr(align(128))]
struct CachePadded<T>(T);

/// The state word: number of the job, whether workers may still join it, and number of workers in
/// it.
mod word {
    pub(super) const ONE_ACTIVE: u64 = 1;
    pub(super) const OPEN: u64 = 1 << 32;
    pub(super) const NEXT_JOB: u64 = 1 << 33;

    pub(super) fn job(word: u64) -> u64 {
        word / NEXT_JOB
    }

    pub(super) fn active(word: u64) -> u32 {
        word as u32
    }
}

struct Shared {
    state: CachePadded<AtomicU64>,
    /// Threads that sleep or are about to.
    sleepers: CachePadded<AtomicU32>,
    /// Workers that are ready for their first job.
    started: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// The current job. The owner writes it while the job is closed and no worker is active.
    /// Workers that have joined the open job read it.
    work: UnsafeCell<Option<*const Work>>,
    /// The thread that waits for the active workers.
    owner: UnsafeCell<Option<Thread>>,
}

// SAFETY: only the pool's owner writes `work` and `owner`, while no worker is active and none can
// become active. Only active workers read them.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `work` is only followed during the call of `Pool::run` that set it,
// and its target is `Sync`.
unsafe impl Send for Shared {}

/// Threads that run the same closure together; see the module documentation.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The process that has the workers.
    process: u32,
    backoff: Backoff,
}

/// Decides when the caller works alone because workers were late.
struct Backoff {
    /// Jobs that the caller still does alone.
    alone: u32,
    /// Jobs that the caller does alone after the next late worker.
    next: u32,
}

impl Backoff {
    const fn new() -> Self {
        Self { alone: 0, next: SERIAL_JOBS[0] }
    }

    /// Whether the caller does the next job alone.
    fn takes_job_alone(&mut self) -> bool {
        let exhausted = self.alone > 0;
        self.alone = self.alone.saturating_sub(1);
        exhausted
    }

    /// Records how long the caller waited for workers after its own part of a job.
    fn record_wait(&mut self, waited: Duration, worked: Duration) {
        if waited > LATE.max(2 * worked) {
            self.alone = self.next;
            self.next = SERIAL_JOBS[1].min(2 * self.next);
        } else {
            self.next = SERIAL_JOBS[0].max(self.next - 1);
        }
    }
}

impl Pool {
    /// A pool of `threads` threads, the calling thread included; 0 counts as 1.
    ///
    /// # Errors
    /// If the operating system cannot start a thread. The error names its number.
    pub fn new(threads: usize) -> io::Result<Self> {
        Self::with_stacks(threads, WORKER_STACK_BYTES)
    }

    fn with_stacks(threads: usize, stack_bytes: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: CachePadded(AtomicU64::new(0)),
            sleepers: CachePadded(AtomicU32::new(0)),
            started: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            work: UnsafeCell::new(None),
            owner: UnsafeCell::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new(), process: process::id(), backoff: Backoff::new() };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("rwkv-{index}"))
                .stack_size(stack_bytes)
                .spawn(move || {
                    // A thread inherits the environment of the thread that starts it.
                    let _environment = default_float_environment();
                    // A thread allocates its handle on first use: here, not in the first job.
                    drop(thread::current());
                    shared.started.fetch_add(1, Ordering::SeqCst);
                    work_loop(&shared);
                })
                .map_err(|error| cannot_start(index + 1, threads, &error))?;
            pool.workers.push(worker);
        }
        while pool.shared.started.load(Ordering::SeqCst) < pool.workers.len() {
            thread::yield_now();
        }
        Ok(pool)
    }

    /// Number of threads, the calling thread included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `work` on the calling thread and on every worker that is ready before the caller has
    /// finished. Returns when all have finished. `work` itself must divide the work among its
    /// calls.
    ///
    /// # Panics
    /// If `work` panics on any thread.
    pub fn run(&mut self, work: &(dyn Fn() + Sync)) {
        if self.workers.is_empty() || self.backoff.takes_job_alone() {
            return work();
        }
        let started = Instant::now();
        let shared = &*self.shared;
        // SAFETY: this extends the lifetime of `work` in the type only. `Close` below does not let
        // this function return or unwind before every worker has finished with `work`, and no other
        // worker can begin.
        let erased = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), *const Work>(work) };
        // SAFETY: the previous job is closed and nobody is active, so nobody reads `work`.
        unsafe { *shared.work.get() = Some(erased) };
        // SAFETY: as above, for `owner`.
        let owner = unsafe { &mut *shared.owner.get() };
        if owner.as_ref().is_none_or(|owner| owner.id() != thread::current().id()) {
            *owner = Some(thread::current());
        }
        shared.state.0.fetch_add(word::NEXT_JOB | word::OPEN, Ordering::SeqCst);
        if shared.sleepers.0.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|worker| worker.thread().unpark());
        }
        let close = Close(shared);
        work();
        let worked = started.elapsed();
        drop(close);
        self.backoff.record_wait(started.elapsed() - worked, worked);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a worker thread panicked");
    }

    /// Shares the elements of all slices of `outs` among the threads, cut at multiples of `grain`.
    /// Calls `work(slice index, offset in the slice, part of the slice)` for each part.
    ///
    /// Parts are long at first and short at the end. Long parts keep memory streaming. Short parts
    /// let all threads finish together, on cores of different speed or with other work too.
    ///
    /// # Panics
    /// If `grain` is 0 or `work` panics.
    pub fn for_each_range<const N: usize>(
        &mut self,
        outs: [&mut [f32]; N],
        grain: usize,
        work: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
    ) {
        let outs = outs.map(|out| {
            let len = out.len();
            RowsMut::new(out, len).cut(1, len)
        });
        self.for_each_range_of_rows(outs, grain, &|index, offset, parts| {
            parts.for_each(|part| work(index, offset, part));
        });
    }

    /// As [`for_each_range`](Self::for_each_range), with the rows of a matrix instead of one slice.
    /// A part is the same range of every row.
    ///
    /// # Panics
    /// As `for_each_range`.
    pub fn for_each_range_of_rows<const N: usize>(
        &mut self,
        outs: [RowsMut<'_>; N],
        grain: usize,
        work: &RangeWork<'_>,
    ) {
        let matrices = outs.map(|RowsMut { data, stride, rows, len }| (Part::new(data), stride, rows, len));
        let grains: usize = matrices.iter().map(|(.., len)| len.div_ceil(grain)).sum();
        let shares = Shares::new(grains, self.threads());
        let next = AtomicUsize::new(0);
        let matrices = &matrices;
        let take_shares = || {
            while let Some(mut share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
                for (index, (data, stride, rows, len)) in matrices.iter().enumerate() {
                    let here = len.div_ceil(grain);
                    if share.start < here {
                        let (start, end) = (share.start * grain, (*len).min(share.end * grain));
                        // SAFETY: `next` gives every share to one thread only, and shares do not
                        // overlap. The exclusive borrows in `outs` last until `run` returns. A row
                        // is at least as long as `end`, so parts of two rows do not overlap either.
                        let part = |row: usize| unsafe { data.chunk(row * stride + start, end - start) };
                        work(index, start, &mut (0..*rows).map(part));
                    }
                    share = share.start.saturating_sub(here)..share.end.saturating_sub(here);
                    if share.is_empty() {
                        break;
                    }
                }
            }
        };
        if grains <= 1 { take_shares() } else { self.run(&take_shares) }
    }

    /// Shares `0..total` among the threads, cut at multiples of `grain`. Calls `work(range, piece)`
    /// for each share. `scratch` has one piece per thread; a thread has the same piece for all its
    /// shares.
    ///
    /// # Panics
    /// If `grain` is 0, `scratch` has another number of pieces, or `work` panics.
    pub fn for_each_share<P: Pieces>(
        &mut self,
        total: usize,
        grain: usize,
        scratch: P,
        work: &(dyn Fn(Range<usize>, &mut P::Piece) + Sync),
    ) {
        let (grains, threads) = (total.div_ceil(grain), self.threads());
        assert!(scratch.count() == threads, "{} pieces for {threads} threads", scratch.count());
        let shares = Shares::new(grains, threads);
        let (next, joined) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let take_shares = || {
            let index = joined.fetch_add(1, Ordering::Relaxed);
            // SAFETY: every thread runs this at most once, so the indices are below the number of
            // threads and each is given out once.
            let mut piece = unsafe { scratch.piece(index) };
            while let Some(share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
                work(share.start * grain..total.min(share.end * grain), &mut piece);
            }
        };
        if grains <= 1 { take_shares() } else { self.run(&take_shares) }
    }

    /// Calls `work(index, piece)` for each piece, on all threads.
    ///
    /// # Panics
    /// If several sources of pieces do not have equally many, or `work` panics.
    pub fn for_each_piece<P: Pieces>(&mut self, pieces: P, work: &(dyn Fn(usize, P::Piece) + Sync)) {
        let total = pieces.count();
        let next = AtomicUsize::new(0);
        let take_pieces = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= total {
                    return;
                }
                // SAFETY: `next` gives every index to one thread only.
                work(index, unsafe { pieces.piece(index) });
            }
        };
        if total <= 1 { take_pieces() } else { self.run(&take_pieces) }
    }
}

fn cannot_start(number: usize, threads: usize, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot start thread {number} of {threads}: {error}"))
}

/// Divides a number of grains into rounds of one share per thread. Every round takes three quarters
/// of the grains that are left.
struct Shares {
    grains: usize,
    threads: usize,
}

impl Shares {
    fn new(grains: usize, threads: usize) -> Self {
        Self { grains, threads }
    }

    /// Share number `index`, or `None` after the last.
    fn get(&self, index: usize) -> Option<Range<usize>> {
        let Self { grains, threads } = *self;
        if threads == 1 {
            return (index == 0 && grains > 0).then_some(0..grains);
        }
        let (round, place) = (index / threads, index % threads);
        let mut start = 0;
        for _ in 0..round {
            start += threads * Self::size(grains - start, threads);
            if start >= grains {
                return None;
            }
        }
        let size = Self::size(grains - start, threads);
        let start = start + place * size;
        (start < grains).then(|| start..grains.min(start + size))
    }

    /// Grains of each share of a round that begins with `left`.
    fn size(left: usize, threads: usize) -> usize {
        (left * 3 / (4 * threads)).max(1)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if process::id() != self.process {
            // The handles stand for threads that can neither be joined nor detached, because the
            // system may reuse their memory.
            self.workers.drain(..).for_each(mem::forget);
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its jobs, so it always ends normally.
            let _ = worker.join();
        }
    }
}

/// An exclusively borrowed slice that threads take chunks of.
struct Part<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: the pointer stands for an exclusive borrow, and the callers of `chunk` take disjoint
// pieces of it.
unsafe impl<T: Send> Sync for Part<T> {}

impl<T> Part<T> {
    fn new(slice: &mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len() }
    }

    /// Elements `offset..offset + len`.
    ///
    /// # Safety
    /// - The borrow that `new` was given lasts for 'a.
    /// - No other chunk that overlaps with this one is in use.
    unsafe fn chunk<'a>(&self, offset: usize, len: usize) -> &'a mut [T] {
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: the offset was just checked to lie in the slice.
        let start = unsafe { self.ptr.add(offset) };
        // SAFETY: the end was checked too; the caller promises the rest.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

/// When dropped, also while unwinding, closes the job and waits for its active workers.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        let state = &self.0.state.0;
        state.fetch_and(!word::OPEN, Ordering::SeqCst);
        wait(self.0, || word::active(state.load(Ordering::SeqCst)) == 0);
    }
}

/// Spins, then sleeps, until `done` is true. The thread that makes `done` true must unpark
/// sleepers.
fn wait(shared: &Shared, done: impl Fn() -> bool) {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            break;
        }
    }
    shared.sleepers.0.fetch_add(1, Ordering::SeqCst);
    while !done() {
        thread::park();
    }
    shared.sleepers.0.fetch_sub(1, Ordering::SeqCst);
}

fn work_loop(shared: &Shared) {
    let state = &shared.state.0;
    let mut seen = 0;
    loop {
        // `stop` is part of the condition. A worker may take the last change of the state for a job
        // that closed before it could join, and must not wait for another job.
        let stop = || shared.stop.load(Ordering::SeqCst);
        wait(shared, || stop() || word::job(state.load(Ordering::SeqCst)) != seen);
        if stop() {
            return;
        }
        let join = |word| (word & word::OPEN != 0).then_some(word + word::ONE_ACTIVE);
        match state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, join) {
            Ok(word) => {
                seen = word::job(word);
                work_on(shared);
            }
            Err(closed) => seen = word::job(closed),
        }
    }
}

/// Runs the current job, which the calling worker has joined, and leaves it.
fn work_on(shared: &Shared) {
    // SAFETY: this worker is active, so the owner does not write `work`.
    let work = unsafe { *shared.work.get() };
    if let Some(work) = work {
        // SAFETY: the owner keeps the closure alive while a worker is active.
        let work = unsafe { &*work };
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
    }
    // SAFETY: as for `work`; cloned before this worker stops being active.
    let owner = unsafe { &*shared.owner.get() }.clone();
    let before = shared.state.0.fetch_sub(word::ONE_ACTIVE, Ordering::SeqCst);
    let last = word::active(before) == 1 && before & word::OPEN == 0;
    if last && shared.sleepers.0.load(Ordering::SeqCst) > 0 {
        owner.iter().for_each(Thread::unpark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(threads: usize, lens: [usize; 3], grain: usize) -> Vec<Vec<f32>> {
        let mut pool = Pool::new(threads).unwrap();
        let mut outs = lens.map(|len| vec![-1.0; len]);
        let [a, b, c] = &mut outs;
        pool.for_each_range([a, b, c], grain, &|slice, offset, out| {
            assert!(offset.is_multiple_of(grain));
            for (i, value) in out.iter_mut().enumerate() {
                assert_eq!(*value, -1.0, "written twice");
                *value = (slice * 10_000 + offset + i) as f32;
            }
        });
        outs.to_vec()
    }

    #[test]
    fn every_value_is_written_once_whatever_the_threads() {
        let lens = [130, 0, 64];
        let expected = numbers(1, lens, 64);
        for (slice, out) in expected.iter().enumerate() {
            assert!(out.iter().enumerate().all(|(i, &v)| v == (slice * 10_000 + i) as f32));
        }
        for threads in 2..=5 {
            for grain in [1, 7, 64, 1000] {
                assert_eq!(numbers(threads, lens, grain), expected, "{threads} threads, grain {grain}");
            }
        }
        assert_eq!(numbers(3, [0, 0, 0], 4), vec![Vec::<f32>::new(); 3]);
    }

    #[test]
    fn a_part_of_a_matrix_is_the_same_range_of_every_row() {
        for (threads, rows, len) in [(1, 3, 70), (3, 3, 70), (2, 1, 70), (2, 4, 72), (2, 0, 72), (3, 4, 0)] {
            let mut matrix = vec![0.0; 4 * 72];
            let mut other = vec![0.0; 10];
            let outs = [RowsMut::new(&mut matrix, 72).cut(rows, len), RowsMut::new(&mut other, 5).cut(2, 5)];
            Pool::new(threads).unwrap().for_each_range_of_rows(outs, 16, &|which, start, parts| {
                assert!(start.is_multiple_of(16));
                for (row, part) in parts.enumerate() {
                    assert!(part.len() <= 70 - 70.min(start) + 2);
                    for (i, value) in part.iter_mut().enumerate() {
                        *value += (1000 * (which + 1) + 100 * row + start + i) as f32;
                    }
                }
            });
            for (row, values) in matrix.chunks(72).enumerate() {
                for (i, &value) in values.iter().enumerate() {
                    let written = row < rows && i < len;
                    let expected = if written { 1000 + 100 * row + i } else { 0 };
                    assert_eq!(value, expected as f32, "row {row}, element {i} of {rows} x {len}");
                }
            }
            assert_eq!(other[9], 2104.0);
        }
    }

    #[test]
    #[should_panic(expected = "3 rows of 2")]
    fn more_rows_than_there_are_are_refused() {
        RowsMut::new(&mut [0.0; 10], 5).cut(3, 5);
    }

    #[test]
    fn shares_follow_each_other_and_get_shorter() {
        for threads in 1..=9 {
            for grains in (0..70).chain([1000, 4096]) {
                let shares = Shares::new(grains, threads);
                let all: Vec<_> = (0..).map_while(|i| shares.get(i)).collect();
                assert_eq!(
                    all.iter().flat_map(|share| share.clone()).collect::<Vec<_>>(),
                    (0..grains).collect::<Vec<_>>()
                );
                assert!(all.windows(2).all(|pair| pair[0].len() >= pair[1].len()), "{all:?}");
                assert!(shares.get(all.len() + 1).is_none() && shares.get(all.len() + 20).is_none());
                if threads > 1 {
                    assert!(all.last().is_none_or(|share| share.len() == 1), "{all:?}");
                }
            }
        }
    }

    #[test]
    fn every_piece_is_worked_on_once() {
        for threads in 1..=4 {
            let mut pool = Pool::new(threads).unwrap();
            let (mut a, mut b) = (vec![0.0; 6 * 9], vec![0.0; 5 * 3 + 1]);
            let mut c = vec![0u8; 6];
            let pieces = ([Cut::new(&mut a, 9), Cut::new(&mut b, 3)], Cut::new(&mut c, 1));
            pool.for_each_piece(pieces, &|i, ([a, b], c)| {
                a.iter_mut().for_each(|x| *x += (i + 1) as f32);
                b.iter_mut().for_each(|x| *x -= (i + 1) as f32);
                c[0] += i as u8 + 1;
            });
            assert!(a.iter().enumerate().all(|(i, &x)| x == (i / 9 + 1) as f32));
            assert!(b.iter().enumerate().all(|(i, &x)| x == -((i / 3 + 1) as f32)));
            assert_eq!(c, [1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn every_element_is_shared_out_once_and_scratch_is_one_threads_own() {
        for threads in 1..=4 {
            let mut pool = Pool::new(threads).unwrap();
            for total in [0, 1, 31, 32, 33, 1000] {
                let mut scratch = vec![0u64; 2 * threads];
                let seen: Vec<AtomicU32> = (0..total).map(|_| AtomicU32::new(0)).collect();
                pool.for_each_share(total, 32, Cut::new(&mut scratch, 2), &|range, scratch| {
                    assert!(range.start.is_multiple_of(32) && scratch.len() == 2);
                    scratch[1] += range.len() as u64;
                    seen[range].iter().for_each(|seen| {
                        seen.fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed) == 1), "{total} by {threads}");
                assert_eq!(scratch.iter().sum::<u64>(), total as u64);
            }
        }
    }

    #[test]
    #[should_panic(expected = "3 pieces for 2 threads")]
    fn scratch_that_is_not_one_piece_per_thread_is_refused() {
        Pool::new(2).unwrap().for_each_share(1, 1, Cut::new(&mut [0u8; 3], 1), &|_, _| ());
    }

    #[test]
    #[should_panic(expected = "equally many pieces")]
    fn pieces_that_do_not_match_are_refused() {
        let (mut a, mut b) = ([0.0; 6], [0.0; 7]);
        Pool::new(1).unwrap().for_each_piece([Cut::new(&mut a, 3), Cut::new(&mut b, 2)], &|_, _| ());
    }

    #[test]
    fn a_block_is_the_same_columns_of_every_row() {
        for threads in 1..=3 {
            let mut pool = Pool::new(threads).unwrap();
            let (mut matrix, mut rest) = ([0usize; 3 * 10 + 4], [0.0; 3 * 10]);
            let columns = Columns::new(&mut matrix, [3, 10], 7, 2);
            let mut others = ArrayVec::<_, 4>::new();
            others.push(RowsMut::new(&mut rest, 10).cut(3, 7).columns(2));
            pool.for_each_piece((columns, others), &|i, (mut block, mut others)| {
                for row in 0..3 {
                    let len = block.row(row).len();
                    assert_eq!((len, others[0].row(row).len()), (2.min(7 - 2 * i), len));
                    block.row(row).iter_mut().for_each(|x| *x += 10 * (i + 1) + row);
                    others[0].row(row).fill(1.0);
                }
            });
            for (i, &x) in matrix.iter().enumerate() {
                let (row, column) = (i / 10, i % 10);
                let expected = if row < 3 && column < 7 { 10 * (column / 2 + 1) + row } else { 0 };
                assert_eq!(x, expected, "row {row}, column {column}");
            }
            assert!(rest.iter().enumerate().all(|(i, &x)| x == if i % 10 < 7 { 1.0 } else { 0.0 }));
        }
    }

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn a_row_that_a_block_does_not_have_is_refused() {
        let mut matrix = [0u8; 12];
        let columns = Columns::new(&mut matrix, [2, 5], 5, 5);
        Pool::new(1).unwrap().for_each_piece(columns, &|_, mut block| block.row(2).fill(1));
    }

    #[test]
    fn rows_of_a_part_of_a_matrix_are_pieces() {
        let mut matrix = [0.0; 4 * 5];
        let mut rows = RowsMut::new(&mut matrix, 5).cut(4, 3);
        let part = rows.part(1..3).rows();
        Pool::new(2).unwrap().for_each_piece(part, &|i, row| row.fill(i as f32 + 1.0));
        for (i, &x) in matrix.iter().enumerate() {
            let expected = if (1..3).contains(&(i / 5)) && i % 5 < 3 { (i / 5) as f32 } else { 0.0 };
            assert_eq!(x, expected);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "has room for every stack")]
    fn a_thread_that_cannot_start_is_an_error_that_says_so() {
        // Twice the address space.
        let error = Pool::with_stacks(17, usize::MAX / 8).err().unwrap().to_string();
        assert!(error.starts_with("cannot start thread ") && error.contains(" of 17: "), "{error}");
    }

    /// Waits in a job until `n` threads are in it.
    fn meet(pool: &mut Pool, n: usize) {
        // Such a job would never end if the caller did it alone.
        pool.backoff = Backoff::new();
        let arrived = AtomicUsize::new(0);
        pool.run(&|| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < n {
                thread::yield_now();
            }
        });
    }

    #[test]
    fn all_threads_take_part_in_a_job_that_lasts() {
        let mut pool = Pool::new(4).unwrap();
        for _ in 0..if cfg!(miri) { 3 } else { 200 } {
            meet(&mut pool, 4);
        }
    }

    #[test]
    fn the_caller_works_alone_after_workers_were_late() {
        let (late, short) = (Duration::from_millis(5), Duration::from_micros(100));
        let mut backoff = Backoff::new();
        let alone = |backoff: &mut Backoff| (0..).take_while(|_| backoff.takes_job_alone()).count();
        assert_eq!(alone(&mut backoff), 0);
        // A small delay is not late: cores differ in speed.
        backoff.record_wait(late, late);
        backoff.record_wait(short, Duration::ZERO);
        assert_eq!(alone(&mut backoff), 0);
        for jobs in [256, 512, 1024] {
            backoff.record_wait(late, short);
            assert_eq!(alone(&mut backoff), jobs);
        }
        (0..10_000).for_each(|_| backoff.record_wait(short, short));
        backoff.record_wait(late, short);
        assert_eq!(alone(&mut backoff), 256);
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let mut pool = Pool::new(3).unwrap();
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(2));
            meet(&mut pool, 3);
        }
    }

    #[test]
    fn a_pool_dropped_right_after_a_job_ends() {
        for _ in 0..if cfg!(miri) { 10 } else { 5000 } {
            let mut pool = Pool::new(3).unwrap();
            pool.run(&|| ());
        }
    }

    #[test]
    fn nothing_of_a_job_runs_after_it_returned() {
        let mut pool = Pool::new(3).unwrap();
        for _ in 0..if cfg!(miri) { 20 } else { 5000 } {
            let running = AtomicUsize::new(0);
            pool.run(&|| {
                running.fetch_add(1, Ordering::SeqCst);
                running.fetch_sub(1, Ordering::SeqCst);
            });
            assert_eq!(running.into_inner(), 0);
        }
    }

    #[test]
    fn a_panic_in_a_job_reaches_the_caller_and_the_pool_survives() {
        let mut pool = Pool::new(2).unwrap();
        let panics = catch_unwind(AssertUnwindSafe(|| pool.run(&|| panic!("in the job"))));
        assert!(panics.is_err());
        pool.shared.panicked.store(false, Ordering::Relaxed);
        meet(&mut pool, 2);
    }

    #[test]
    fn a_panic_on_a_worker_reaches_the_caller() {
        let mut pool = Pool::new(2).unwrap();
        let caller = thread::current().id();
        let joined = AtomicBool::new(false);
        let panics = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|| {
                if thread::current().id() != caller {
                    joined.store(true, Ordering::SeqCst);
                    panic!("on the worker");
                }
                while !joined.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            });
        }));
        assert!(panics.is_err());
        meet(&mut pool, 2);
    }
}
