// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// Config says where an agent lives.
type Config struct {
	Channel int    // the descriptor of the control socket; 0 in a sandbox
	Root    string // directory whose etc, run and home are used; "/" in a sandbox

	// PID1 says that the agent is the first process of a sandbox of its own. Only
	// then does it mount, set the host name and reseed the kernel.
	PID1 bool

	PidsMax int    // most processes and threads of all sessions together; 0: no limit
	Build   string // reported to the server
	Log     *slog.Logger
}

// Agent is one running agent.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	bootedAt time.Time
	reaper   *reaper
	launcher *launcher
	sessions *sessions

	identity sync.Mutex // held while an identity is set

	mu         sync.Mutex
	timeline   string
	generation string
}

// New prepares the sandbox and makes its agent.
func New(cfg Config) *Agent {
	a := &Agent{cfg: cfg, log: cfg.Log, bootedAt: time.Now(), reaper: newReaper(), sessions: newSessions()}
	a.launcher = newLauncher(a.boot(), a.log)
	return a
}

// Run serves the control socket for ever.
func (a *Agent) Run() {
	takeSignals()
	// PID 1 gets orphans anyway; elsewhere they have to be asked for.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	go a.reaper.run()
	(&channel{fd: a.cfg.Channel, log: a.log}).serve(a)
}

// takeSignals keeps signals from ending the agent. They are received and
// dropped, not ignored: that they are ignored would be inherited by children.
func takeSignals() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1,
		unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM, unix.SIGVTALRM, unix.SIGPWR, unix.SIGIO, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
}

// hello takes note of a new peer. A timeline that is not the present one says
// that the sandbox was restored or copied.
func (a *Agent) hello(h wire.HelloBody) wire.HelloAckBody {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h.Timeline != "" && h.Timeline != a.timeline {
		a.timeline = h.Timeline
		a.sessions.newTimeline(h.Timeline)
	}
	if h.Generation != "" {
		a.generation = h.Generation
	}
	return wire.HelloAckBody{
		Nonce: h.Nonce, Version: wire.Version, MinVersion: wire.MinVersion, Build: a.cfg.Build,
		BootedAt: a.bootedAt, PID: os.Getpid(), Sessions: a.sessions.count(), Timeline: a.timeline,
		PidsLimit: a.launcher.limited,
	}
}

// inRoot gives where an absolute path of the sandbox is for this process.
func (a *Agent) inRoot(path string) string { return filepath.Join(a.cfg.Root, path) }
