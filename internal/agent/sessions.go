// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// How long finished sessions are kept: for keepFor in any case, unless there
// are more than keepAtMost; the newest keepCount longer. Their output together
// is bounded too: the oldest lose theirs first, but not their exit code.
const (
	keepFor    = 5 * time.Minute
	keepCount  = 64
	keepAtMost = 1024
	keepOutput = 64 << 20

	// maxRunning bounds the sessions that run at once.
	maxRunning = 1024
)

// sessions is the table of all sessions.
type sessions struct {
	starting sync.Mutex // held while a session starts, so that a key starts only one

	mu       sync.Mutex // guards the rest; taken after starting
	timeline string
	order    []*session // oldest first
	byID     map[string]*session
	byKey    map[string]*session
}

func newSessions() *sessions {
	return &sessions{byID: map[string]*session{}, byKey: map[string]*session{}}
}

// add puts a session in. It belongs to the present timeline.
func (t *sessions) add(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.setTimeline(t.timeline, 0)
	t.order = append(t.order, s)
	t.byID[s.id], t.byKey[s.key] = s, s
	t.prune()
}

func (t *sessions) get(id string) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byID[id]; s != nil {
		return s, nil
	}
	return nil, failf(wire.NotFound, "exec session %q not found", id)
}

// find gives the session that was started with a key, or nil.
func (t *sessions) find(key string) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byKey[key]
}

func (t *sessions) list() []*session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]*session(nil), t.order...)
}

func (t *sessions) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.order)
}

// checkRoom refuses another session if too many run.
func (t *sessions) checkRoom() error {
	running := 0
	for _, s := range t.list() {
		if s.endedAt().IsZero() {
			running++
		}
	}
	if running >= maxRunning {
		return failf(wire.Exhausted, "%d exec sessions run already", running)
	}
	return nil
}

// newTimeline begins a timeline in every session, where its output ends now.
func (t *sessions) newTimeline(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timeline = id
	for _, s := range t.order {
		s.setTimeline(id, s.log.newTimeline())
	}
}

// prune removes what is not to be kept. It runs when a session is added, so
// that an idle agent has nothing to do.
func (t *sessions) prune() {
	finished, output := 0, 0
	kept := make([]*session, 0, len(t.order))
	for i := len(t.order) - 1; i >= 0; i-- { // newest first
		s := t.order[i]
		if ended := s.endedAt(); !ended.IsZero() {
			finished++
			if finished > keepAtMost || finished > keepCount && time.Since(ended) > keepFor {
				delete(t.byID, s.id)
				delete(t.byKey, s.key)
				continue
			}
			start, end, _ := s.log.extent()
			if output += int(end - start); output > keepOutput {
				output -= s.log.forget()
			}
		}
		kept = append(kept, s)
	}
	for i, j := 0, len(kept)-1; i < j; i, j = i+1, j-1 {
		kept[i], kept[j] = kept[j], kept[i]
	}
	t.order = kept
}
