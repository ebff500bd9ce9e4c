// SPDX-License-Identifier: Apache-2.0

package pager

// Pace finds the rate of the bulk loading as memory gets short and comes back.
// It is for one goroutine.
type Pace struct {
	full, low, rate int64
}

// slowest is the rate below which the bulk does not go, in bytes/s: a read that
// a guest waits for can only start when a slot of the bulk is done, which here
// takes 62 ms at most.
const slowest = 1 << 20

// NewPace makes a pace that is full, in bytes/s and above 0, where at least low
// bytes of memory are available.
func NewPace(full, low int64) *Pace { return &Pace{full: full, low: low, rate: full} }

// Next gives the rate in bytes/s from now on, where so many bytes of memory are
// available: half of the last while that is too little, down to a floor, and
// twice the last when it is enough. It is to be asked about every second.
func (p *Pace) Next(available int64) int64 {
	if available < p.low {
		p.rate = max(p.rate/2, min(slowest, p.full))
	} else {
		p.rate = min(p.rate*2, p.full)
	}
	return p.rate
}
