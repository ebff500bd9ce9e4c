// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// When the process of a session has ended, its output is taken until nobody has
// the pipe open. A process left behind can keep it open for ever, so the end is
// also reached when nothing came for lingerQuiet, or after lingerMost if what
// the pipe can have held at the end, maxPipe bytes, has been read.
const (
	lingerQuiet = 250 * time.Millisecond
	lingerMost  = 10 * time.Second
	maxPipe     = 1 << 20
)

// session is a process started from outside, with its input and output. It
// stays when the process has ended.
type session struct {
	id, key, user, cwd string
	argv               []string
	startedAt          time.Time
	log                *outlog
	in                 *stdin // nil if nothing could be started
	outs               []*os.File
	pumps              sync.WaitGroup // one for each of outs

	mu            sync.Mutex
	pid           int
	timeout       *time.Timer
	timedOut      bool
	exitedAt      time.Time  // when the process ended; zero while it runs
	exit          *wire.Exit // set when all output is in the log, too
	timeline      string
	timelineStart int64
}

// failed makes a session of a command that could not be started, as a shell
// would report it.
func (s *session) failed(code int, message string) {
	s.log.append(wire.Stderr, []byte("oc: "+message+"\n"))
	s.finish(time.Now(), wire.Exit{Code: code})
}

// pump moves one stream of the process into the log.
func (s *session) pump(stream wire.Stream, f *os.File) {
	defer s.pumps.Done()
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	late := 0 // bytes read since the process ended
	for {
		exitedAt := s.processEnded()
		if !exitedAt.IsZero() {
			_ = f.SetReadDeadline(time.Now().Add(lingerQuiet))
		}
		n, err := s.log.fill(stream, rc)
		if errors.Is(err, os.ErrDeadlineExceeded) { // a freeze makes it come early: look
			_ = rc.Control(func(fd uintptr) { n, err = s.log.readFrom(stream, int(fd)) })
		}
		switch {
		case errors.Is(err, errNoRoom):
			s.log.waitRoom()
			continue
		case errors.Is(err, unix.EAGAIN):
			s.leave(f)
			return
		case err != nil:
			s.closeOut(f)
			return
		case exitedAt.IsZero():
			continue
		}
		if late += n; late > maxPipe && time.Since(exitedAt) > lingerMost {
			s.leave(f)
			return
		}
	}
}

// leave stops taking output from a process that was left behind. It is read on
// and dropped, until that process ends: to close the pipe would kill it when it
// next writes. A terminal is closed, as a terminal window is.
func (s *session) leave(f *os.File) {
	if s.in != nil && s.in.tty {
		return
	}
	go func() {
		_ = f.SetReadDeadline(time.Time{})
		drop := make([]byte, 512)
		for {
			if _, err := f.Read(drop); err != nil {
				_ = f.Close()
				return
			}
		}
	}()
}

// closeOut closes a pipe. A terminal is closed with its input.
func (s *session) closeOut(f *os.File) {
	if s.in == nil || !s.in.tty {
		_ = f.Close()
	}
}

// ended is called when the process has been reaped.
func (s *session) ended(ws syscall.WaitStatus) {
	exit := wire.Exit{Code: ws.ExitStatus()}
	if ws.Signaled() {
		exit = wire.Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	s.mu.Lock()
	s.exitedAt = time.Now()
	if s.timeout != nil {
		s.timeout.Stop()
	}
	exit.TimedOut = s.timedOut
	s.mu.Unlock()
	for _, f := range s.outs {
		_ = f.SetReadDeadline(time.Now().Add(lingerQuiet))
	}
	s.pumps.Wait()
	s.in.shut()
	s.finish(time.Time{}, exit)
}

// finish publishes how the session ended.
func (s *session) finish(at time.Time, exit wire.Exit) {
	s.mu.Lock()
	if !at.IsZero() {
		s.exitedAt = at
	}
	s.exit = &exit
	s.mu.Unlock()
	s.log.close()
}

func (s *session) processEnded() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exitedAt
}

// endedAt is when a finished session's process ended, or zero.
func (s *session) endedAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exit == nil {
		return time.Time{}
	}
	return s.exitedAt
}

func (s *session) exitStatus() *wire.Exit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exit
}

func (s *session) setTimeline(id string, start int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timeline, s.timelineStart = id, start
}

// setTimeout makes expire run after d, if the process has not ended by then.
func (s *session) setTimeout(d time.Duration, expire func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d <= 0 || !s.exitedAt.IsZero() {
		return
	}
	s.timeout = time.AfterFunc(d, func() {
		s.mu.Lock()
		s.timedOut = s.exitedAt.IsZero()
		s.mu.Unlock()
		expire()
	})
}

func (s *session) info() wire.SessionInfo {
	start, end, readers := s.log.extent()
	i := wire.SessionInfo{
		ID: s.id, Key: s.key, Argv: shorten(s.argv), User: s.user, Cwd: s.cwd, StartedAt: s.startedAt,
		OutputStart: start, OutputEnd: end, Attached: readers, StdinClosed: true,
	}
	if s.in != nil {
		i.TTY = s.in.tty
		i.StdinOffset, i.StdinClosed = s.in.state()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i.PID, i.Exit, i.Timeline, i.TimelineStart = s.pid, s.exit, s.timeline, s.timelineStart
	return i
}

// shorten bounds what a session's arguments add to a message.
func shorten(argv []string) []string {
	const most = 4 << 10
	left := most
	for i, a := range argv {
		if left -= len(a) + 1; left < 0 {
			cut := append([]string(nil), argv[:i]...)
			return append(cut, a[:max(left+len(a), 0)]+"…")
		}
	}
	return argv
}
