// SPDX-License-Identifier: Apache-2.0

// Package engine is the seam between the life cycle of sandboxes and the thing
// that runs and freezes them.
//
// A Driver starts generations (one run of a sandbox), captures them while they
// run, and restores captures into new generations. It knows processes, cgroups
// and files of a generation; it does not know sandboxes, orgs, checkpoints'
// rows, or why anything is done.
//
// Invariants: a Process record is enough to find, control and destroy a
// generation after the server was restarted; a failed Start or Restore leaves
// nothing behind; Destroy may be repeated; a Capture never stops a generation
// for longer than its deadline.
package engine

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"time"
)

// Shape is what is fixed when a generation starts.
type Shape struct {
	CPUs        int   `json:"cpus"`        // what nproc says inside; also the CPU time limit in cores
	MemoryBytes int64 `json:"memoryBytes"` // what MemTotal says inside
	DiskBytes   int64 `json:"diskBytes"`   // size of the writable layer
	PidsMax     int   `json:"pidsMax"`     // processes and threads inside
}

// Spec describes a generation to start.
type Spec struct {
	Generation string // id, used for names of cgroup, directory and engine container
	ImagePath  string // EROFS file that is the root file system
	Hostname   string
	Shape      Shape
}

// Process is the durable record of a generation's engine process. Its fields
// belong to the driver; it travels through the metadata as JSON.
type Process struct {
	Generation string `json:"generation"`
	Build      string `json:"build"`  // sha256 of the kept oc build it runs from
	Engine     string `json:"engine"` // that build's engine, as in Requirements
	Dir        string `json:"dir"`    // run-time directory (control socket, log)
	PID        int    `json:"pid"`
	StartTime  uint64 `json:"startTime"` // clock ticks since boot: with PID the identity of the process
	GoferPID   int    `json:"goferPid,omitempty"`
}

// Encode gives the record as stored.
func (p Process) Encode() []byte {
	b, _ := json.Marshal(p) // a struct of strings and numbers cannot fail
	return b
}

// DecodeProcess reads a stored record.
func DecodeProcess(b []byte) (p Process, err error) {
	err = json.Unmarshal(b, &p)
	return p, err
}

// PageRange says where a run of bytes of a capture's page file came from: the
// engine's memory file Source (0 the application memory, then the others in
// the order in which the engine registers them) at Offset. (Source, Offset)
// is the stable identity of a page over captures and restores.
type PageRange struct {
	Source uint32
	Offset uint64
	Length uint64
}

// Capture is a frozen state, held in memory until closed.
//
// The pages file is the concatenation of Ranges. Of a capture on a Base only the
// pages that differ from the base's page of the same identity are held.
type Capture struct {
	State, Meta         io.ReaderAt // engine's object graph, its page map
	StateSize, MetaSize int64
	Pages               io.ReaderAt // contents of the pages that Copied tells of
	PagesSize           int64       // size of the whole pages file
	Ranges              []PageRange // of the pages file, in order
	Copied              []PageRun   // ascending by page; nil: Pages is the whole pages file
	Pause               time.Duration
	Close               func()
}

// CopiedBytes is how much of the pages file was copied and is held.
func (c *Capture) CopiedBytes() int64 {
	if c.Copied == nil {
		return c.PagesSize
	}
	pages := int64(0)
	for _, r := range c.Copied {
		pages += r.Count
	}
	return pages * PageSize
}

// PageSize is the unit of guest memory, in bytes.
const PageSize = 4096

// PageRun is a run of pages of the pages file that a capture holds. Runs whose
// pages adjoin are one run where their contents adjoin too. The last page of a
// file may be shorter than a page; its contents take a whole page all the same.
type PageRun struct {
	Page  int64 // number of the first in the pages file
	Count int64 // pages
	At    int64 // where their contents begin in Capture.Pages, in bytes
}

// Base is the pages of an earlier capture, by identity, for a capture that
// copies only what differs.
type Base struct {
	Ranges []PageRange // of its pages file, in order
	Hashes []uint64    // XXH3-64 of each page of it with Seed
	Seed   uint64
}

// CaptureOptions say how a capture is to be made.
type CaptureOptions struct {
	// Budget bounds the memory that the copy may take, in bytes: a generation
	// that is larger goes through a file on disk, with a longer pause.
	Budget int64
	// Base has the capture copy only the pages that differ from it; nil: all.
	Base *Base
	// Expect is how much will be copied, in bytes, where somebody knows: room for
	// so much is made before the freeze, and for what goes beyond it inside the
	// pause. 0: all. Without a Base it says nothing.
	Expect int64
	// Bytes is how much the generation may hold once it is fully loaded, where
	// somebody knows: the room and the time for the capture are for so much, if that
	// is more than what it holds.
	Bytes int64
	// BeforeFreeze is called once when everything that can be done before the freeze
	// is done. An error gives the capture up, and nothing was frozen. It may be nil.
	BeforeFreeze func() error
}

// Requirements is what a capture needs to run again; refused with a reason
// before anything is stopped where it is not met.
type Requirements struct {
	Engine      string   `json:"engine"`      // driver name and version stamp
	Arch        string   `json:"arch"`        // GOARCH
	CPUFeatures []string `json:"cpuFeatures"` // sorted
}

// Source is a checkpoint's artefact to restore from.
type Source struct {
	Location string // what the store calls the place of it, or the directory of one in the first format
	// Files are descriptors that belong to the location of a capture that is not
	// stored yet; the caller closes its copies.
	Files  []*os.File
	Build  string // the oc build whose engine wrote it
	Engine string // that engine, as in Requirements
}

// Target is one generation to restore into.
type Target struct {
	Spec  Spec
	Stdin *os.File // agent's end of its channel; the caller closes its copy
	// Prepared is the engine process that Prepare made with Spec and Stdin, by
	// the build of the source; the zero value has Restore prepare one.
	Prepared Process
}

// Restoring is a restore in progress: its targets come to run one after the
// other, while their memory still loads.
type Restoring interface {
	// Processes are the targets' records, in order.
	Processes() []Process
	// Await waits until target i runs; its error says why it does not.
	Await(ctx context.Context, i int) error
	// Pager is the durable record of the process that serves the pages.
	Pager() Process
	// Hold freezes target i, Resume lets it run.
	Hold(ctx context.Context, i int) error
	Resume(ctx context.Context, i int) error
	// Loaded is closed when every target is fully loaded or lost.
	Loaded() <-chan struct{}
	// Err says, after Loaded, why target i was lost; nil if it is loaded.
	Err(i int) error
	// Release says that the targets are somebody's, or nobody's: the pager loads
	// also what no guest waits for, and ends by itself once everything is there.
	// No Hold or Resume after it.
	Release()
}

// Held is a generation that a capture left frozen. It thaws by itself when the
// process that asked for it ends, or at the end of its limit.
type Held interface {
	// Thaw lets the generation go on.
	Thaw(ctx context.Context) error
	// Keep gives up the hold without thawing: the generation stays frozen for
	// good.
	Keep(ctx context.Context) error
}

// Driver runs generations.
type Driver interface {
	// Requirements of captures made by this driver here and now.
	Requirements() Requirements
	// Check says why a capture that the build wrote, with these requirements,
	// cannot run here, or nil.
	Check(build string, r Requirements) error
	// Build is the hash of the kept build that new generations run from.
	Build() string
	// BuildFile is the file of a kept build, and whether it is there.
	BuildFile(build string) (path string, ok bool)
	// AddBuild keeps a build that came from elsewhere; what r gives must have the
	// hash.
	AddBuild(build string, r io.Reader) error
	// ReadsStore tells whether what the build wrote, with that engine, can be
	// restored from the store, or from a capture that is not stored yet. Where it
	// cannot, Restore wants the directory of a checkpoint in the first format.
	ReadsStore(ctx context.Context, build, engine string) (bool, error)
	// Prepare makes the engine process of a generation, in which nothing runs
	// yet: it waits for Restore. Like each call to an engine it fails by itself where
	// that hangs.
	Prepare(ctx context.Context, spec Spec, stdin *os.File) (Process, error)
	// Start runs a fresh generation whose PID 1 is the agent, its stdin the given
	// socket.
	Start(ctx context.Context, spec Spec, stdin *os.File) (Process, error)
	// Capture freezes the generation, copies its state and thaws it. It first
	// waits until a generation that is still loading has loaded. A build that
	// knows no bases copies all, and one that does not say when it is about to freeze
	// has BeforeFreeze called before it begins.
	Capture(ctx context.Context, p Process, opts CaptureOptions) (*Capture, error)
	// CaptureHeld is Capture, but leaves the generation frozen, for limit at most.
	CaptureHeld(ctx context.Context, p Process, opts CaptureOptions, limit time.Duration) (*Capture, Held, error)
	// Restore begins to start the targets from an artefact, by the build that
	// wrote it. After an error there are none.
	Restore(ctx context.Context, src Source, targets []Target) (Restoring, error)
	// Hurry makes a pager load at full rate, because somebody waits for it.
	Hurry(pager Process)
	// Pause and Resume freeze and thaw a generation.
	Pause(ctx context.Context, p Process) error
	Resume(ctx context.Context, p Process) error
	// Alive tells whether the record's process runs.
	Alive(p Process) bool
	// Exited is closed when the process has ended. The watching ends with ctx.
	Exited(ctx context.Context, p Process) (<-chan struct{}, error)
	// LastWords gives what a dead generation's engine said of its end, "" if
	// nothing; to be asked before it is destroyed.
	LastWords(p Process) string
	// Loss gives why a dead generation was ended by the pager that loaded it, nil if
	// it was not; to be asked before it is destroyed. It is known also where the
	// server that began the restore has gone.
	Loss(p Process) error
	// Usage tells what the generation takes of the host, in bytes.
	Usage(p Process) (memory, disk int64)
	// Kill ends the generation's processes at once, without waiting for what
	// they held to be given back; Destroy follows.
	Kill(generation string) error
	// Destroy ends the generation and removes everything of it.
	Destroy(ctx context.Context, p Process) error
	// Leftovers lists the generations that exist on the host, whether or not
	// anything remembers them.
	Leftovers() ([]string, error)
	// Reap takes ended processes that nobody waits for from the process table;
	// to be called now and then.
	Reap()
	// DestroyGeneration ends and removes a generation known only by its id.
	DestroyGeneration(ctx context.Context, id string) error
}
