// SPDX-License-Identifier: Apache-2.0

//go:build long

package meta

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestPostgres runs the suite on a PostgreSQL of its own, which listens on a
// unix socket and is gone with the test.
func TestPostgres(t *testing.T) {
	admin := startPostgres(t)
	var made atomic.Int32
	suite(t, func(t *testing.T) database {
		name := fmt.Sprintf("test%d", made.Add(1))
		conn, err := pgx.Connect(t.Context(), admin("postgres"))
		must(t, err)
		defer conn.Close(t.Context())
		_, err = conn.Exec(t.Context(), "CREATE DATABASE "+name)
		must(t, err)
		return database{admin(name)}
	})
}

// startPostgres gives the address of a database of a fresh cluster, by name.
func startPostgres(t *testing.T) func(name string) string {
	t.Helper()
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	must(t, err)
	if len(bins) == 0 {
		t.Fatal("PostgreSQL is missing: apt-get install postgresql")
	}
	slices.Sort(bins)
	bin := bins[len(bins)-1]

	dir, err := os.MkdirTemp("", "oc-pg") //nolint:usetesting // t.TempDir's parent is closed to the user the server runs as
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	cred := serverUser(t, dir)
	data := filepath.Join(dir, "data")

	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "oc", "-A", "trust", "-E", "UTF8", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = dir, &syscall.SysProcAttr{Credential: cred}
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}

	var log bytes.Buffer
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", dir,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=400",
		"-c", "timezone=Asia/Kolkata") // ours is UTC whatever the server's is
	server.Dir, server.SysProcAttr = dir, &syscall.SysProcAttr{Credential: cred}
	server.Stdout, server.Stderr = &log, &log
	must(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGINT) // fast shutdown
		if err := server.Wait(); err != nil {
			t.Errorf("postgres: %v\n%s", err, log.String())
		}
	})
	address := func(name string) string {
		u := url.URL{Scheme: "postgres", User: url.User("oc"), Path: "/" + name, RawQuery: url.Values{"host": {dir}}.Encode()}
		return u.String()
	}
	awaitPostgres(t, address("postgres"))
	return address
}

// serverUser gives dir to the user postgres if we are root, whom PostgreSQL
// refuses to run as.
func serverUser(t *testing.T, dir string) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	must(t, err)
	uid, err := strconv.Atoi(u.Uid)
	must(t, err)
	gid, err := strconv.Atoi(u.Gid)
	must(t, err)
	must(t, os.Chown(dir, uid, gid))
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func awaitPostgres(t *testing.T, dsn string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, dsn)
		if err == nil {
			must(t, conn.Close(ctx))
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("PostgreSQL does not come up: %v", err)
		case <-tick.C:
		}
	}
}
