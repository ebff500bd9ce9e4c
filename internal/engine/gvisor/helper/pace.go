// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"os"
	"time"

	"github.com/opencomputer/oc/internal/hostmem"
	"github.com/opencomputer/oc/internal/pager"
)

// paceEvery is how often the rate of loading is seen to.
const paceEvery = time.Second

// governor slows a load down while the machine is short of memory.
type governor struct {
	full    int64 // the rate where there is enough, in bytes/s
	reserve int64 // bytes that shall stay free, 0 = the default
	memory  hostmem.Reader
	set     func(rate int64) // in bytes/s; 0: unlimited
}

// run sees to the rate at each tick until the load has ended. A hurry lifts the
// bound for good: somebody waits for the end.
func (g *governor) run(tick <-chan time.Time, hurry <-chan os.Signal, ended <-chan struct{}) {
	var pace *pager.Pace
	for {
		select {
		case <-ended:
			return
		case <-hurry:
			g.set(0)
			tick = nil
		case <-tick:
			m, err := g.memory()
			if err != nil || g.full <= 0 {
				continue // it goes on as it does
			}
			if pace == nil {
				pace = pager.NewPace(g.full, m.Reserve(g.reserve))
			}
			g.set(pace.Next(m.Available))
		}
	}
}
