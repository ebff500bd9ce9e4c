// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/term"
)

// refresh is how often the line of a progress is drawn, and how long an operation
// must take to show one.
const refresh = 250 * time.Millisecond

// clearLine goes to the start of the terminal's line and empties it.
const clearLine = "\r\x1b[K"

// progress shows on standard error that something long is going on: on a
// terminal one line with the present step and the seconds gone, else one plain
// line per step.
type progress struct {
	w     io.Writer
	tty   bool
	width int
	began time.Time
	stop  chan struct{}
	wg    sync.WaitGroup

	mu    sync.Mutex
	text  string // guarded by mu
	drawn bool   // guarded by mu; something is on the line
}

// progress begins to show one. The text alone is shown on a terminal only. end
// must be called.
func (a *app) progress(text string) *progress {
	p := &progress{w: a.err, text: text, began: time.Now(), stop: make(chan struct{}), width: 80}
	fd, tty := terminalFD(a.err)
	if !tty {
		return p
	}
	p.tty = true
	if w, _, err := term.GetSize(fd); err == nil && w > 0 {
		p.width = w
	}
	p.wg.Go(p.draw)
	return p
}

// draw keeps the line fresh until the end.
func (p *progress) draw() {
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.mu.Lock()
			line := []rune(fmt.Sprintf("%s (%ds)", p.text, int(time.Since(p.began).Seconds())))
			if len(line) >= p.width {
				line = line[:p.width-1]
			}
			p.drawn = true
			fmt.Fprint(p.w, clearLine+string(line))
			p.mu.Unlock()
		}
	}
}

// step says what is being done now.
func (p *progress) step(text string) {
	text = printable(text)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = text
	if !p.tty {
		fmt.Fprintln(p.w, text)
	}
}

// quiet says what is being done now on a terminal only: for steps too frequent
// for a log.
func (p *progress) quiet(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = printable(text)
}

// count gives what shows how far an operation over bytes that begins now has come,
// on a terminal; a total of 0 is not known. What goes back, or is at 0 still, begins
// then: the rate is that of what is being counted, not of what came before it.
func (p *progress) count(what string) func(done, total int64) { return p.counting(what, "") }

// countToMost is count for an operation of which it is known how much it is at most.
func (p *progress) countToMost(what string) func(done, most int64) {
	return p.counting(what, "at most ")
}

func (p *progress) counting(what, most string) func(done, total int64) {
	if !p.tty {
		return func(int64, int64) {}
	}
	pace := pace{now: time.Now, began: time.Now()}
	return func(done, total int64) { p.quiet(countText(what, most, done, total, pace.took(done))) }
}

// pace tells how long what is counted has been going on. It may be used by any
// goroutine.
type pace struct {
	now func() time.Time

	mu    sync.Mutex
	began time.Time // guarded by mu
	last  int64     // guarded by mu
}

// took is given how far it has come.
func (p *pace) took(done int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if done == 0 || done < p.last {
		p.began = p.now()
	}
	p.last = done
	return p.now().Sub(p.began)
}

// countText says how much of an operation is done, how fast it goes, and how
// long it will take if it goes on like that. most stands before what may be less.
func countText(what, most string, done, total int64, took time.Duration) string {
	text := what + ": " + size(done)
	if total > 0 {
		text += " of " + most + size(total)
	}
	if took <= 0 || done <= 0 {
		return text
	}
	rate := float64(done) / took.Seconds()
	text += fmt.Sprintf(", %.1f MB/s", rate/(1<<20))
	if total > done {
		text += fmt.Sprintf(", %s%ds left", most, int(float64(total-done)/rate)+1)
	}
	return text
}

// warn prints a line that stays.
func (p *progress) warn(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintf(p.w, "Warning: %s\n", printable(fmt.Sprintf(format, args...)))
}

// clear empties the line. mu is held.
func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.w, clearLine)
		p.drawn = false
	}
}

// end takes the line away. It may be called more than once.
func (p *progress) end() {
	p.mu.Lock()
	select {
	case <-p.stop:
		p.mu.Unlock()
		return
	default:
	}
	close(p.stop)
	p.mu.Unlock()
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}
