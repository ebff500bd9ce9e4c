// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/hostmem"
)

func TestGovernor(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	var memory hostmem.Memory
	var broken error
	rates := make(chan int64, 1)
	g := governor{full: 100 * mb, memory: func() (hostmem.Memory, error) { return memory, broken }, set: func(r int64) { rates <- r }}
	tick, hurry, ended := make(chan time.Time), make(chan os.Signal), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.run(tick, hurry, ended)
	}()
	for i, step := range []struct{ available, want int64 }{
		{600, 100}, {511, 50}, {0, 25}, {512, 50}, {5000, 100}, {0, 50},
	} {
		memory = hostmem.Memory{Total: 4000 * mb, Available: step.available * mb}
		tick <- time.Time{}
		if got := <-rates; got != step.want*mb {
			t.Errorf("step %d: %d bytes/s, want %d MB/s", i, got, step.want)
		}
	}
	broken = errors.New("no numbers") // nothing is changed then
	tick <- time.Time{}
	hurry <- unix.SIGUSR1
	if got := <-rates; got != 0 {
		t.Errorf("in a hurry: %d bytes/s", got)
	}
	select {
	case tick <- time.Time{}:
		t.Error("a hurry is forgotten at the next tick")
	case hurry <- unix.SIGUSR1: // as often as one likes
		<-rates
	}
	close(ended)
	<-done
}
