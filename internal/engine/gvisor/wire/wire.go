// SPDX-License-Identifier: Apache-2.0

// Package wire is the protocol between the engine driver and its helpers.
//
// A helper is `oc engine-helper VERB`, started from the kept build of the
// engine that it talks to. It reads one Request as a line of JSON from its
// standard input, finds the descriptors named below from number 3 on, and
// answers with Event lines on its standard output. Fields are only ever added,
// because a newer server must get along with an older helper: Version says
// what the server speaks, and a helper refuses a higher one.
package wire

import (
	"errors"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/cgroup"
	"github.com/opencomputer/oc/internal/fault"
)

// Version of the protocol.
const Version = 1

// Verbs of the helper.
const (
	// VerbPrepare makes an engine process, and starts the agent in it if
	// Request.Start. Descriptors: 3 the agent's stdin, 4 its output. One event:
	// EventDone with the Process.
	VerbPrepare = "prepare"
	// VerbCapture copies a running generation's state into an arena.
	// Descriptors: 3 state, 4 meta, 5 pages, 6 ranges (a table of package pageset);
	// with Request.Base 8 is a base of that package, and only the pages that differ
	// from it are copied. The magic of the table tells whether the helper's build
	// knew how. One event: EventDone with Sizes. With Request.Ask another one comes
	// before it: EventReady, when all is done that can be done before the freeze. The
	// helper then waits for one Command, Freeze; where its standard input ends instead
	// it fails, and nothing was frozen. With Request.HoldMS the
	// engine stays paused, and the helper waits for one Command, VerbResume or
	// Keep; it resumes the engine when its standard input or the time ends. With
	// Request.Stay and without HoldMS it stays when it has captured, with the
	// guest's memory mapped, and waits as a standby does, at 9, for the next capture
	// of the same target, whose Request follows on its standard input. It ends when
	// one fails, or the socket or the engine does.
	VerbCapture = "capture"
	// VerbRestore loads a checkpoint into prepared engine processes and serves
	// their pages until all are loaded. Events: EventRunning, EventLoaded,
	// EventLost per target; EventDone answers each Command on standard input.
	// With Request.Linked it reads nothing itself: descriptor 3 is its end of a
	// connection of package pager/link.
	VerbRestore = "restore"
	// VerbPager opens Request.Image for a helper of another build and serves it,
	// until that one's end is closed, over the connection that is descriptor 3.
	// Without targets. EventDone only if it cannot.
	VerbPager = "pager"
	// VerbFeatures asks a build what its helpers can do beyond what the first
	// ones of this version could, which do not know the verb. One event: EventDone
	// with Features.
	VerbFeatures = "features"
	// VerbWatch is the watchdog of a capture with HoldMS, with Request.Watch.
	// Descriptor: 3 the capture's mark. EventRunning when it watches; a Command
	// dismisses it, which EventDone answers; no signal but SIGKILL does. When its
	// standard input ends it waits for the watched helper to end, not longer than it
	// may, and resumes the engine if that helper left it paused.
	VerbWatch = "watch"
	// VerbPause and VerbResume freeze and thaw a generation. One EventDone. With
	// Request.Marked descriptor 3 is a capture's mark, and what is thawed is only what
	// that says is paused, which it does not say any more then.
	VerbPause  = "pause"
	VerbResume = "resume"
)

// FeatureLinked is that VerbRestore knows Request.Linked.
const FeatureLinked = "linked"

// Standby in the place of the verb starts a helper that waits until it is
// wanted: its descriptor 3 is a socket of packets (unix(7), SOCK_SEQPACKET),
// from which it takes one, whose text is a verb and whose control message has
// the descriptors for it; then it is that helper, also by its command line. It
// ends when the socket does.
const Standby = "standby"

// Staying is in the place of the verb, on the command line of a helper that has
// captured and waits for the next capture.
const Staying = "staying"

// PanicLog is the file in a generation's directory where a dying engine leaves
// its last words.
const PanicLog = "panic.log"

// First descriptors handed to a helper.
const (
	FDFirst  = 3
	FDStdin  = 3 // prepare
	FDOutput = 4
	FDState  = 3 // capture
	FDMeta   = 4
	FDPages  = 5
	FDIDs    = 6
	FDMark   = 7 // capture: see NewMark; with HoldMS
	FDBase   = 8 // capture with Base
	FDNext   = 9 // capture with Stay
	FDLink   = 3 // pager, and restore with Linked

	FDCaptured = 3 // restore that is not Linked: the first of Request.Files; of a pager behind FDLink
	MaxFiles   = 7 // that any verb takes

	FDWatchMark = 3 // watch, and resume with Marked
)

// Request is what a helper shall do.
type Request struct {
	Version int           `json:"version"`
	Verb    string        `json:"verb"`
	Targets []Target      `json:"targets"` // one, but for restore, pager and features
	Start   bool          `json:"start,omitempty"`
	Image   string        `json:"image,omitempty"`  // restore, pager: where the store has the checkpoint
	Linked  bool          `json:"linked,omitempty"` // restore: a pager has the image, which is not named
	Files   int           `json:"files,omitempty"`  // restore, pager: descriptors that belong to Image
	Rate    int64         `json:"rate,omitempty"`   // restore: bulk loading, bytes/s per target
	Memory  Memory        `json:"memory,omitzero"`  // restore: where it slows down for want of memory
	HoldMS  int64         `json:"holdMs,omitempty"` // capture: leave the engine paused, for this long at most
	Base    bool          `json:"base,omitempty"`   // capture: there is one at FDBase
	Expect  int64         `json:"expect,omitempty"` // capture with Base: bytes of pages that are expected to differ; 0: all
	Stay    bool          `json:"stay,omitempty"`   // capture: for the next one; there is a socket at FDNext
	Ask     bool          `json:"ask,omitempty"`    // capture: before the freeze
	Marked  bool          `json:"marked,omitempty"` // resume: what a mark says is paused
	Prepare *PrepareExtra `json:"prepare,omitempty"`

	Watch *Watch `json:"watch,omitempty"`

	// Frozen is for capture: applied just before the engine is frozen, for the
	// server to undo.
	Frozen *cgroup.Setting `json:"frozen,omitempty"`
}

// Watch says which helper a watchdog watches, and for how long.
type Watch struct {
	PID        int    `json:"pid"`
	StartTime  uint64 `json:"startTime"`
	LimitMS    int64  `json:"limitMs"`    // in all
	PatienceMS int64  `json:"patienceMs"` // once the server is gone
}

// Memory is what a helper has to know of the machine's.
type Memory struct {
	Reserve int64    `json:"reserve,omitempty"` // bytes that shall stay free; 0 = the default of package hostmem
	Groups  []string `json:"groups,omitempty"`  // directories of the control groups that bound it
}

// Target names a generation's engine.
type Target struct {
	Generation string `json:"generation"`
	Dir        string `json:"dir"` // run-time directory: control socket, bundle
	PID        int    `json:"pid,omitempty"`
	StartTime  uint64 `json:"startTime,omitempty"`
}

// PrepareExtra is what only prepare needs.
type PrepareExtra struct {
	Hostname    string       `json:"hostname"`
	ImagePath   string       `json:"imagePath"`
	DiskDir     string       `json:"diskDir"` // directory for files of writable layers
	Shape       engine.Shape `json:"shape"`
	CgroupProcs []string     `json:"cgroupProcs"` // files to join the generation's cgroup by
}

// Command is sent to a restoring helper after the request.
type Command struct {
	ID     int    `json:"id"`
	Do     string `json:"do"` // VerbPause | VerbResume | "release"
	Target int    `json:"target"`
}

// Freeze tells a capturing helper that asks to go on.
const Freeze = "freeze"

// Keep tells a holding helper to leave the engine paused.
const Keep = "keep"

// Release tells a restoring helper that no command will follow.
const Release = "release"

// Kinds of events.
const (
	EventDone    = "done"
	EventBegun   = "begun"   // of a helper that stayed: it has taken up the request
	EventReady   = "ready"   // of a capture with Ask: it waits for Freeze
	EventRunning = "running" // the target's processes run; its memory still loads
	EventLoaded  = "loaded"
	EventLost    = "lost" // the target cannot run: Error says why
)

// Event is a line of a helper's output.
type Event struct {
	Event   string         `json:"event"`
	Target  int            `json:"target,omitempty"`
	Command int            `json:"command,omitempty"` // EventDone of a Command
	Error   string         `json:"error,omitempty"`
	Fault   *Fault         `json:"fault,omitempty"` // more about the Error, where a person can act on it
	Process engine.Process `json:"process,omitzero"`
	Sizes   Sizes          `json:"sizes,omitzero"`

	Features []string `json:"features,omitempty"` // of VerbFeatures
}

// Fault is what a fault.Fault says besides its text.
type Fault struct {
	Kind    fault.Kind `json:"kind"`
	Message string     `json:"message"`
	Hint    string     `json:"hint,omitempty"`
}

// Failed is the event with an error in it.
func (e Event) Failed(err error) Event {
	e.Error = err.Error()
	var f *fault.Fault
	if errors.As(err, &f) {
		e.Fault = &Fault{Kind: f.Kind, Message: f.Message, Hint: f.Hint}
	}
	return e
}

// Err is the event's error, as it was for Failed; nil without one.
func (e Event) Err() error {
	switch {
	case e.Error == "":
		return nil
	case e.Fault == nil:
		return errors.New(e.Error)
	}
	f := &fault.Fault{Kind: e.Fault.Kind, Message: e.Fault.Message, Hint: e.Fault.Hint}
	if e.Error != f.Message {
		f.Err = errors.New(e.Error)
	}
	return f
}

// Sizes of a capture, in bytes, and how long the engine was held, in ns.
type Sizes struct {
	State, Meta, Pages, Ranges int64
	PauseNS                    int64
	Copied                     int64 `json:",omitempty"` // of Pages; 0 also where nobody counted
}
