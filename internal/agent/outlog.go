// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// Sizes and times of an outlog.
const (
	defaultOutput = 1 << 20
	minOutput     = 2 * wire.Window
	maxOutput     = 32 << 20
	firstBuffer   = 4 << 10
	bytesPerRun   = 32 // the runs of a full log take at most half as much memory as its bytes

	stallTick  = time.Second
	stallTicks = 30 // a reader that holds the process up for so long is cut
)

var (
	errReaderCut = failf(wire.Exhausted, "the reader of this session's output was cut: it read nothing for %d seconds while it held the process up; attach again", stallTicks)
	errNoRoom    = errors.New("no room in the log")
)

// outlog keeps the newest output of a session: bytes of both streams in the
// order in which they were read, addressed by their offset.
//
// Without readers the oldest bytes make room for new ones. With readers nothing
// is dropped that one of them has not had, nor what may still be on the way to
// it, which is one window: the process is not read from, and so waits, until
// the slowest has moved on or is cut. A reader whose peer is lost keeps its
// place until the next one attaches there, so that a new server finds all that
// the old one's clients have not had. Memory grows with the output up to the
// limit.
type outlog struct {
	limit int

	mu         sync.Mutex
	cond       *sync.Cond
	buf        []byte // the byte at offset o is buf[o % len(buf)]
	start, end int64  // what is kept
	runs       []run  // tile start..end
	readers    map[*reader]struct{}
	waiters    int  // pumps that wait for room
	ticking    bool // tick is due
	epoch      int  // of the timeline
	closed     bool
}

// run is a stretch of bytes of one stream, up to an offset.
type run struct {
	end    int64
	stream wire.Stream
}

// reader is one attached reader. Its fields are guarded by the log's mutex.
type reader struct {
	from    int64 // where it was attached
	pos     int64 // next byte to hand out
	seen    int64 // pos at the last tick
	stalled int   // ticks without progress
	cut     bool
	epoch   int  // of the log at the attach
	lost    bool // its peer is gone; it only keeps its place
}

func newOutlog(limit int) *outlog {
	if limit == 0 {
		limit = defaultOutput
	}
	l := &outlog{limit: min(max(limit, minOutput), maxOutput), readers: map[*reader]struct{}{}}
	l.cond = sync.NewCond(&l.mu)
	return l
}

// fill reads once from a descriptor in non-blocking mode, after waiting until
// it is readable. It gives io.EOF at the end, and errNoRoom if waitRoom is to
// be called first.
func (l *outlog) fill(s wire.Stream, rc syscall.RawConn) (n int, err error) {
	cerr := rc.Read(func(fd uintptr) bool {
		n, err = l.readFrom(s, int(fd))
		return !errors.Is(err, unix.EAGAIN)
	})
	if cerr != nil {
		return 0, cerr
	}
	return n, err
}

// readFrom reads into the log's own memory.
func (l *outlog) readFrom(s wire.Stream, fd int) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	space := l.space()
	if len(space) == 0 {
		return 0, errNoRoom
	}
	for {
		n, err := unix.Read(fd, space)
		switch {
		case err == unix.EINTR:
		case err == unix.EIO, n == 0 && err == nil: // EIO: a terminal nobody has open
			return 0, io.EOF
		case err != nil:
			return 0, err
		default:
			l.added(s, n)
			return n, nil
		}
	}
}

// append adds bytes that do not come from a descriptor, and do not wait.
func (l *outlog) append(s wire.Stream, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(p) > 0 {
		n := copy(l.space(), p)
		if n == 0 {
			return
		}
		l.added(s, n)
		p = p[n:]
	}
}

// space gives where the next bytes may go, nil if there is no room.
func (l *outlog) space() []byte {
	room := l.room()
	if room == 0 {
		return nil
	}
	if used := int(l.end - l.start); len(l.buf) < l.limit && len(l.buf)-used < firstBuffer {
		l.relocate(min(max(2*len(l.buf), firstBuffer), l.limit))
	}
	if len(l.buf) < l.limit {
		room = min(room, len(l.buf)-int(l.end-l.start))
	}
	at := int(l.end % int64(len(l.buf)))
	return l.buf[at:min(at+min(room, wire.MaxChunk), len(l.buf))]
}

// room is how many bytes may be added without taking any from a reader.
func (l *outlog) room() int {
	if len(l.runs) >= l.limit/bytesPerRun && l.slowest(0) < l.runs[0].end {
		return 0
	}
	return l.limit - int(l.end-l.slowest(wire.Window))
}

// slowest is the lowest position of a reader, less what may be on the way to
// it, or the end if there is none.
func (l *outlog) slowest(onTheWay int64) int64 {
	pos := l.end
	for r := range l.readers {
		pos = min(pos, max(r.pos-onTheWay, r.from, l.start))
	}
	return pos
}

// added accounts for n bytes that were written where space said.
func (l *outlog) added(s wire.Stream, n int) {
	l.end += int64(n)
	if k := len(l.runs); k > 0 && l.runs[k-1].stream == s {
		l.runs[k-1].end = l.end
	} else {
		l.runs = append(l.runs, run{l.end, s})
	}
	l.start = max(l.start, l.end-int64(len(l.buf)))
	if len(l.runs) > l.limit/bytesPerRun {
		l.start = max(l.start, l.runs[0].end)
	}
	for l.runs[0].end <= l.start {
		l.runs = l.runs[1:]
	}
	l.cond.Broadcast()
}

// relocate moves what is kept into a buffer of another size, which must hold it.
func (l *outlog) relocate(size int) {
	if size == 0 {
		l.buf = nil
		return
	}
	buf := make([]byte, size)
	for o := l.start; o < l.end; {
		from := l.buf[o%int64(len(l.buf)):]
		from = from[:min(int64(len(from)), l.end-o)]
		o += int64(copy(buf[o%int64(size):], from))
	}
	l.buf = buf
}

// waitRoom waits until the readers have made room.
func (l *outlog) waitRoom() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiters++
	for l.room() == 0 {
		if !l.ticking {
			l.ticking = true
			time.AfterFunc(stallTick, l.tick)
		}
		l.cond.Wait()
	}
	l.waiters--
}

// tick runs every second while a pump waits. Ticks are counted, not time, so
// that a freeze of the sandbox, in which clocks go on, cuts nobody.
func (l *outlog) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiters == 0 {
		l.ticking = false
		return
	}
	l.countStall()
	time.AfterFunc(stallTick, l.tick)
}

// countStall counts a tick for each reader that holds the process up.
func (l *outlog) countStall() {
	slowest := l.slowest(0)
	for r := range l.readers {
		switch {
		case r.pos != r.seen:
			r.seen, r.stalled = r.pos, 0
		case r.pos == slowest:
			if r.stalled++; r.stalled >= stallTicks {
				r.cut = true
				delete(l.readers, r)
				l.cond.Broadcast()
			}
		}
	}
}

// attach adds a reader at an offset; if that is no longer kept, at the oldest
// that is.
func (l *outlog) attach(at func(start, end int64) (int64, error)) (r *reader, missing, end int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pos, err := at(l.start, l.end)
	if err != nil {
		return nil, 0, 0, err
	}
	if pos < 0 || pos > l.end {
		return nil, 0, 0, failf(wire.Invalid, "offset %d is not within the session's output, which ends at %d", pos, l.end)
	}
	pos, missing = max(pos, l.start), max(l.start-pos, 0)
	r = &reader{from: pos, pos: pos, seen: pos, epoch: l.epoch}
	l.dropLost(pos)
	l.readers[r] = struct{}{}
	return r, missing, l.end, nil
}

// hold keeps the place of a reader that is to come, from the first byte on.
func (l *outlog) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readers[&reader{lost: true, epoch: l.epoch}] = struct{}{}
}

func (l *outlog) detach(r *reader) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.readers, r)
	l.cond.Broadcast()
}

// lose turns a reader whose peer is gone into one that keeps its place; not if
// the timeline has changed since.
func (l *outlog) lose(r *reader) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || r.cut || r.epoch != l.epoch {
		delete(l.readers, r)
	} else {
		r.lost = true
	}
	l.cond.Broadcast()
}

// dropLost frees the places at or after pos that lost readers keep.
func (l *outlog) dropLost(pos int64) {
	for r := range l.readers {
		if r.lost && r.pos >= pos {
			delete(l.readers, r)
		}
	}
	l.cond.Broadcast()
}

// newTimeline frees all places of lost readers and gives the offset at which
// the timeline begins.
func (l *outlog) newTimeline() (start int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch++
	l.dropLost(0)
	return l.end
}

// next copies the reader's next bytes, all of one stream, into p. It waits for
// some; io.EOF says that the process has ended and all has been read.
func (l *outlog) next(r *reader, p []byte, ended func() error) (s wire.Stream, off int64, n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := ended(); err != nil {
			return 0, 0, 0, err
		}
		switch {
		case r.cut:
			return 0, 0, 0, errReaderCut
		case r.pos < l.end:
			s, n = l.copyAt(r.pos, p)
			off = r.pos
			r.pos += int64(n)
			if l.waiters > 0 {
				l.cond.Broadcast()
			}
			return s, off, n, nil
		case l.closed:
			return 0, 0, 0, io.EOF
		}
		l.cond.Wait()
	}
}

func (l *outlog) copyAt(pos int64, p []byte) (wire.Stream, int) {
	lo, hi := 0, len(l.runs)-1
	for lo < hi { // the first run that ends beyond pos
		if m := (lo + hi) / 2; l.runs[m].end > pos {
			hi = m
		} else {
			lo = m + 1
		}
	}
	from := l.buf[pos%int64(len(l.buf)):]
	from = from[:min(int64(len(from)), l.runs[lo].end-pos)]
	return l.runs[lo].stream, copy(p, from)
}

// wake makes waiting readers look at their context again.
func (l *outlog) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cond.Broadcast()
}

// close says that no more will be added, and gives unused memory back.
func (l *outlog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if used := int(l.end - l.start); used < len(l.buf) {
		l.relocate(used)
	}
	l.cond.Broadcast()
}

// forget drops the kept bytes of a closed log that nobody reads, and tells how
// many they were.
func (l *outlog) forget() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed || l.attached() > 0 {
		return 0
	}
	n := len(l.buf)
	l.buf, l.runs, l.start = nil, nil, l.end
	return n
}

// extent tells what is kept and how many read it.
func (l *outlog) extent() (start, end int64, readers int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.start, l.end, l.attached()
}

func (l *outlog) attached() (n int) {
	for r := range l.readers {
		if !r.lost {
			n++
		}
	}
	return n
}
