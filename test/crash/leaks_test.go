// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/keeper"
	"github.com/opencomputer/oc/internal/meta"
)

// checkNothingLeaked wants one generation per sandbox and none besides the pool's,
// and of each just what it must have: a row, a process, a directory, control
// groups, and a channel that the keeper holds. Nothing else is there.
func (w *world) checkNothingLeaked(t *testing.T) {
	t.Helper()
	db, err := meta.Open(t.Context(), filepath.Join(w.server.Data, "meta.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	await(t, "what is left", func(ctx context.Context) error {
		generations, err := w.generations(ctx, db)
		if err != nil {
			return err
		}
		err = w.placesOf(ctx, generations)
		if left := w.server.Scratch(); len(left) > 0 {
			err = errors.Join(err, fmt.Errorf("left is %v", left))
		}
		return errors.Join(err, w.processes(len(generations)), halfMade(ctx, db))
	})
}

// generations gives those of the rows, which must be the sandboxes' own and at
// most as many more as the pool has.
func (w *world) generations(ctx context.Context, db *meta.DB) (ids []string, err error) {
	rows, err := db.Generations(ctx)
	if err != nil {
		return nil, err
	}
	of, pooled := map[string]int{}, 0
	for _, g := range rows {
		ids = append(ids, g.ID)
		if g.SandboxID == "" {
			pooled++
		} else if of[g.SandboxID]++; g.State != meta.GenerationLive {
			err = errors.Join(err, fmt.Errorf("generation %s of %s is %s", g.ID, g.SandboxID, g.State))
		}
	}
	for id := range w.sandboxes {
		if of[id] != 1 {
			err = errors.Join(err, fmt.Errorf("sandbox %s has %d generations", id, of[id]))
		}
	}
	if len(of) != len(w.sandboxes) || pooled > w.pool {
		err = errors.Join(err, fmt.Errorf("%d sandboxes have generations, %d should; %d are the pool's", len(of), len(w.sandboxes), pooled))
	}
	slices.Sort(ids)
	return ids, err
}

// placesOf wants each place that has something of generations to have it of these.
func (w *world) placesOf(ctx context.Context, ids []string) error {
	places := w.server.Generations()
	c, err := keeper.Dial(ctx, w.server.KeeperSocket())
	if err != nil {
		return err
	}
	defer c.Close()
	if places["the keeper"], err = c.List(ctx); err != nil {
		return err
	}
	for where, has := range places {
		slices.Sort(has)
		if !slices.Equal(has, ids) {
			err = errors.Join(err, fmt.Errorf("%s has %v, not %v", where, has, ids))
		}
	}
	return err
}

// processes wants one engine per generation, one server and one keeper, and no
// helper at work; of those that wait for another capture at most one per generation.
func (w *world) processes(engines int) error {
	count, staying := map[string]int{}, 0
	for _, p := range w.server.Processes() {
		line := strings.Join(p.Args, " ")
		switch {
		case strings.HasPrefix(line, "runsc-sandbox"):
			count["engine"]++
		case strings.Contains(line, " serve"):
			count["server"]++
		case strings.Contains(line, " keeper"):
			count["keeper"]++
		case strings.Contains(line, "engine-helper staying"):
			staying++
		case strings.Contains(line, "engine-helper") && !strings.Contains(line, "engine-helper standby"):
			count[line]++
		}
	}
	if staying > engines {
		return fmt.Errorf("%d helpers wait for another capture, with %d generations", staying, engines)
	}
	for kind, n := range count {
		if n != map[string]int{"engine": engines, "server": 1, "keeper": 1}[kind] {
			return fmt.Errorf("%d × %s, with %d generations", n, kind, engines)
		}
	}
	return nil
}

// halfMade names the rows of what is neither there nor gone.
func halfMade(ctx context.Context, db *meta.DB) error {
	sandboxes, err := db.SandboxesAnyOrg(ctx, meta.SandboxPending)
	if err != nil {
		return err
	}
	checkpoints, err := db.CheckpointsAnyOrg(ctx, meta.CheckpointProcessing, meta.CheckpointDeleting)
	if err != nil {
		return err
	}
	for _, sb := range sandboxes {
		err = errors.Join(err, fmt.Errorf("sandbox %s is %s", sb.ID, sb.State))
	}
	for _, c := range checkpoints {
		err = errors.Join(err, fmt.Errorf("checkpoint %s is %s", c.ID, c.Status))
	}
	return err
}
