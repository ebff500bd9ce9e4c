// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

// testHandlesAtOnce has two handles, as of a server and of `oc key create`,
// write at the same time: nobody fails, and each sees what the other wrote.
func testHandlesAtOnce(t *testing.T, d database) {
	handles := []*DB{d.open(t), d.open(t)}
	org := newOrg(t, handles[0], "a")
	const writers, rows = 8, 15
	var wg sync.WaitGroup
	for w := range writers {
		db, peer := handles[w%2], handles[(w+1)%2]
		wg.Go(func() {
			for range rows {
				s := Sandbox{OrgID: org.ID, State: SandboxRunning}
				err := db.InTx(t.Context(), func(tx *DB) error {
					if _, err := tx.Orgs(t.Context()); err != nil { // a read first, then a write
						return err
					}
					return tx.InsertSandbox(t.Context(), &s)
				})
				if err != nil {
					t.Errorf("insert: %v", err)
					return
				}
				if _, err := peer.Sandbox(t.Context(), org.ID, s.ID); err != nil {
					t.Errorf("the other handle: %v", err)
				}
			}
		})
	}
	wg.Wait()
	all, err := handles[0].SandboxesAnyOrg(t.Context())
	must(t, err)
	expectEqual(t, len(all), writers*rows)
}

// testOpensAtOnce has several openers of an empty database: the migrations run
// once.
func testOpensAtOnce(t *testing.T, d database) {
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			db, err := Open(t.Context(), d.dsn, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			defer db.Close()
			if _, err := db.EnsureOrg(t.Context(), fmt.Sprint(i)); err != nil {
				t.Errorf("org: %v", err)
			}
		})
	}
	wg.Wait()
	orgs, err := d.open(t).Orgs(t.Context())
	must(t, err)
	expectEqual(t, len(orgs), 6)
}

func TestSQLite(t *testing.T) {
	t.Parallel()
	suite(t, func(t *testing.T) database { return database{filepath.Join(t.TempDir(), "meta.db")} })
}

// TestSQLitePaths opens files whose names mean something in an address.
func TestSQLitePaths(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a?mode=memory", "b%20c", "d#e", "f g", "h'i", "ü"} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		newOrg(t, database{"sqlite:" + path}.open(t), "a")
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			info, err := e.Info()
			must(t, err)
			if !strings.HasPrefix(e.Name(), name) || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("beside %s: %s %v", name, e.Name(), info.Mode())
			}
		}
	}
}

func TestSQLiteSettings(t *testing.T) {
	t.Parallel()
	db := database{filepath.Join(t.TempDir(), "meta.db")}.open(t)
	for pragma, want := range map[string]string{
		"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "15000",
	} {
		var got string
		must(t, db.pool.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got))
		if got != want {
			t.Errorf("%s = %s, want %s", pragma, got, want)
		}
	}
}

func TestOpenFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	must(t, os.WriteFile(garbage, []byte(strings.Repeat("no database ", 1000)), 0o600))
	tests := []struct {
		name, dsn string
		kind      fault.Kind
	}{
		{"nothing", "", fault.Invalid},
		{"no directory", filepath.Join(dir, "none", "meta.db"), fault.Unavailable},
		{"no database", garbage, fault.Unavailable},
		{"malformed address", "postgres://u:secret@h:port/x", fault.Invalid},
		{"no server", "postgres://u:secret@/x?host=" + dir, fault.Unavailable},
	}
	for _, tt := range tests {
		_, err := Open(t.Context(), tt.dsn, slog.New(slog.DiscardHandler))
		if !fault.Is(err, tt.kind) {
			t.Errorf("%s: %v, want a fault %s", tt.name, err, tt.kind)
			continue
		}
		if fault.As(err).Hint == "" || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, hint %q", tt.name, err, fault.As(err).Hint)
		}
	}
}

// testNewerSchema opens a database that a later build has migrated.
func testNewerSchema(t *testing.T, d database) {
	db := d.open(t)
	_, err := db.pool.ExecContext(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, TRUE)")
	must(t, err)
	_, err = Open(t.Context(), d.dsn, slog.New(slog.DiscardHandler))
	expectFault(t, err, fault.Unavailable, "the metadata database has schema version 99; this version of oc knows 2")
}

// TestMain lets the test binary play the server that is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		if err := writeForEver(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const writerEnv = "META_TEST_WRITER"

// writeForEver inserts rows and says the id of each when it is committed.
func writeForEver(path string) error {
	ctx := context.Background()
	db, err := Open(ctx, path, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	org, err := db.EnsureOrg(ctx, "a")
	for err == nil {
		s := Sandbox{OrgID: org.ID, State: SandboxRunning}
		if err = db.InsertSandbox(ctx, &s); err == nil {
			fmt.Println(s.ID)
		}
	}
	return err
}

// TestKilledWriter kills a process between and in its transactions: whatever it
// said was committed is there, and the database serves at once.
func TestKilledWriter(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "meta.db")
	committed := []string{}
	for range 3 {
		writer := exec.Command(os.Args[0])
		writer.Env = append(os.Environ(), writerEnv+"="+path)
		writer.Stderr = os.Stderr
		out, err := writer.StdoutPipe()
		must(t, err)
		must(t, writer.Start())
		lines := bufio.NewScanner(out)
		for range 20 {
			if !lines.Scan() {
				break
			}
			committed = append(committed, lines.Text())
		}
		must(t, writer.Process.Kill())
		for lines.Scan() { // what it said before it was killed
			committed = append(committed, lines.Text())
		}
		_ = writer.Wait()
	}
	if len(committed) < 60 {
		t.Fatalf("the writers committed %d rows", len(committed))
	}
	db := database{path}.open(t)
	for _, id := range committed {
		_, err := db.SandboxAnyOrg(t.Context(), id)
		must(t, err)
	}
	newOrg(t, db, "after")
}
