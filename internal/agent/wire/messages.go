// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"time"
)

// HelloBody is the payload of Hello.
type HelloBody struct {
	Nonce      string `json:"nonce"`
	Version    int    `json:"version"`
	MinVersion int    `json:"minVersion"`
	Generation string `json:"generation,omitempty"` // which run of the sandbox this is
	Timeline   string `json:"timeline,omitempty"`   // a new one starts in every session if it differs from the present one
}

// HelloAckBody is the payload of HelloAck.
type HelloAckBody struct {
	Nonce      string    `json:"nonce"`
	Version    int       `json:"version"`
	MinVersion int       `json:"minVersion"`
	Build      string    `json:"build,omitempty"`
	BootedAt   time.Time `json:"bootedAt"` // when this agent process began, by its own clock
	PID        int       `json:"pid"`      // 1 in a sandbox
	Sessions   int       `json:"sessions"` // running and finished ones
	Timeline   string    `json:"timeline"`
	PidsLimit  bool      `json:"pidsLimit"` // the limit on processes holds
}

// RequestBody is the payload of Request.
type RequestBody struct {
	Op   Op              `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

// ReplyBody is the payload of Reply.
type ReplyBody struct {
	Error  *Error          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Error is a failure that the agent reports. Kind is one of the kinds of
// internal/fault.
type Error struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Values of Error.Kind.
const (
	Invalid     = "invalid"
	NotFound    = "not_found"
	Conflict    = "conflict"
	Exhausted   = "exhausted"
	Unavailable = "unavailable"
	Internal    = "internal"
)

// Error gives the message.
func (e *Error) Error() string { return e.Message }

// Op names an operation.
type Op string

// The operations, with the kind of call each one is: unary (Request, Reply),
// download (Request, Accept, Data…, Reply) or upload (Request, Data…, End,
// Reply). Attach is a download with Output and ReplayEnd in place of Data.
const (
	OpExecStart   Op = "exec.start"   // unary: StartRequest, SessionInfo
	OpExecRun     Op = "exec.run"     // StartRequest, AttachAccept, Exit: start, close and attach in one; version 2
	OpExecInfo    Op = "exec.info"    // unary: SessionArgs, SessionInfo
	OpExecList    Op = "exec.list"    // download: rows of SessionInfo
	OpExecAttach  Op = "exec.attach"  // AttachArgs, AttachAccept, Exit
	OpExecStdin   Op = "exec.stdin"   // upload: SessionArgs, StdinResult; the Data's offset is that of stdin
	OpExecClose   Op = "exec.close"   // unary: SessionArgs; closes stdin
	OpExecSignal  Op = "exec.signal"  // unary: SignalArgs
	OpExecResize  Op = "exec.resize"  // unary: ResizeArgs
	OpFileStat    Op = "file.stat"    // unary: PathArgs, FileInfo
	OpFileList    Op = "file.list"    // download: PathArgs; rows of FileInfo
	OpFileMkdir   Op = "file.mkdir"   // unary: PathArgs
	OpFileRemove  Op = "file.remove"  // unary: PathArgs
	OpFileRead    Op = "file.read"    // download: PathArgs, FileInfo (in Accept)
	OpFileWrite   Op = "file.write"   // upload: WriteArgs
	OpFilePack    Op = "file.pack"    // download: PathArgs, FileInfo (in Accept)
	OpFileUnpack  Op = "file.unpack"  // upload: PathArgs
	OpIdentitySet Op = "identity.set" // unary: Identity
	OpProbe       Op = "probe"        // unary
)

// StartRequest starts a session.
type StartRequest struct {
	Key     string   `json:"key"`               // chosen by the caller, unique: a second request with it gives the first one's session
	Argv    []string `json:"argv"`              // executed as it is, argv[0] looked up in PATH
	Env     []string `json:"env,omitempty"`     // "K=V", over the defaults
	Cwd     string   `json:"cwd,omitempty"`     // default: the user's home
	User    string   `json:"user,omitempty"`    // name or uid; default: sandbox if there is one, else root
	TTY     *Size    `json:"tty,omitempty"`     // run on a terminal of this size
	Timeout float64  `json:"timeout,omitempty"` // seconds until the process group is killed; 0: never
	Output  int      `json:"output,omitempty"`  // bytes of output to keep; 0: 1 MiB; at most 32 MiB
	Hold    bool     `json:"hold,omitempty"`    // a reader will come: drop nothing before it has, as if it were attached and did not read
}

// Size is that of a terminal, in characters.
type Size struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// SessionInfo describes a session.
type SessionInfo struct {
	ID            string    `json:"id"`
	Key           string    `json:"key,omitempty"`
	Argv          []string  `json:"argv"` // shortened if it is very long
	User          string    `json:"user"`
	Cwd           string    `json:"cwd"`
	TTY           bool      `json:"tty"`
	PID           int       `json:"pid"` // 0 if nothing could be started
	StartedAt     time.Time `json:"startedAt"`
	Exit          *Exit     `json:"exit,omitempty"` // nil while it runs
	Timeline      string    `json:"timeline"`
	TimelineStart int64     `json:"timelineStart"` // offset at which the timeline began
	OutputStart   int64     `json:"outputStart"`   // offset of the oldest output that is kept
	OutputEnd     int64     `json:"outputEnd"`
	StdinOffset   int64     `json:"stdinOffset"` // bytes of stdin taken so far
	StdinClosed   bool      `json:"stdinClosed"`
	Attached      int       `json:"attached"` // readers
}

// Exit says how a session's process ended.
type Exit struct {
	Code     int  `json:"code"`             // 128+n for a death by signal n
	Signal   int  `json:"signal,omitempty"` // the signal it died of
	TimedOut bool `json:"timedOut,omitempty"`
}

// SessionArgs names a session.
type SessionArgs struct {
	Session string `json:"session"`
}

// From says where an attach begins.
type From string

// The places where an attach can begin.
const (
	FromScrollback From = "scrollback" // the oldest output that is kept
	FromTimeline   From = "timeline"   // where the present timeline began
	FromOffset     From = "offset"     // AttachArgs.Offset
	FromEnd        From = "end"        // only what comes from now on
)

// AttachArgs attaches a reader.
type AttachArgs struct {
	Session string `json:"session"`
	From    From   `json:"from,omitempty"` // default: scrollback

	// Offset and Timeline are where an earlier reader stopped. If Timeline is
	// not the present one, an Offset beyond its start is moved back to that:
	// what lay beyond was another history.
	Offset   int64  `json:"offset,omitempty"`
	Timeline string `json:"timeline,omitempty"`
}

// AttachAccept begins an attach.
type AttachAccept struct {
	Session SessionInfo `json:"session"`
	From    int64       `json:"from"`    // offset of the first byte that will be sent
	Missing int64       `json:"missing"` // bytes between the place asked for and From that are no longer kept
}

// StdinResult is how much of stdin has been taken.
type StdinResult struct {
	Offset int64 `json:"offset"`
}

// SignalArgs sends a signal to a session's process group.
type SignalArgs struct {
	Session string `json:"session"`
	Signal  int    `json:"signal"`
}

// ResizeArgs changes the size of a session's terminal.
type ResizeArgs struct {
	Session string `json:"session"`
	Size    Size   `json:"size"`
}

// PathArgs names a file or directory. A relative path starts at the home of the
// default user.
type PathArgs struct {
	Path string `json:"path"`
}

// WriteArgs begins to write a file.
type WriteArgs struct {
	Path string  `json:"path"`
	Mode *uint32 `json:"mode,omitempty"` // permission bits; nil: those of the file it replaces, or 0644
}

// FileInfo describes a file.
type FileInfo struct {
	Name    string    `json:"name"`
	Path    string    `json:"path"` // absolute
	Kind    FileKind  `json:"kind"`
	Size    int64     `json:"size"`
	Mode    uint32    `json:"mode"` // permission bits
	ModTime time.Time `json:"modTime"`
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	Target  string    `json:"target,omitempty"` // of a symlink, where that is what was asked for
}

// FileKind says what kind of file it is.
type FileKind string

// The kinds of files.
const (
	KindFile    FileKind = "file"
	KindDir     FileKind = "dir"
	KindSymlink FileKind = "symlink"
	KindOther   FileKind = "other"
)

// Identity is what distinguishes a sandbox from the one it was copied from.
// Empty fields are left alone.
type Identity struct {
	Hostname   string `json:"hostname,omitempty"`
	MachineID  string `json:"machineID,omitempty"`  // 32 lower-case hex digits
	Entropy    []byte `json:"entropy,omitempty"`    // mixed into the kernel's pool
	Generation string `json:"generation,omitempty"` // written to /run/oc/generation
}
