// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
)

// dirEnv makes the test binary another process of the node: it fills a pack in
// that directory and holds it until its stdin ends or it is killed.
const dirEnv = "CACHE_TEST_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(dirEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	c, err := Open(dir, 1<<30)
	if err != nil {
		panic(err)
	}
	p, err := c.Pack(name, 8)
	if err != nil {
		panic(err)
	}
	if err := p.Write(content(name, 0, 8), 0); err != nil {
		panic(err)
	}
	fmt.Println("filled")
	_, _ = os.Stdin.Read(make([]byte, 1))
	_ = p.Close()
}

// What another process has filled is read here, is not evicted while that
// process lives, and can be as soon as it was killed.
func TestOtherProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := open(t, dir, 0)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), dirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "filled\n" {
		t.Fatalf("%q, %v", line, err)
	}
	p := pack(t, c, name, 8)
	checkRead(t, p, name, 0, 8, true)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if freed := trim(t, c); freed != 0 || stats(t, c).Packs != 1 {
		t.Errorf("evicted %d bytes of what another process uses", freed)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if freed := trim(t, c); freed == 0 || stats(t, c).Packs != 0 {
		t.Errorf("freed %d after its user was killed", freed)
	}
}

// Packs are opened, filled and read while everything that is not in use is
// evicted all the time: an open pack keeps the files that its name means, and
// no read gives wrong bytes.
func TestOpenRacesEviction(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	evictor := open(t, dir, 0)
	stop := make(chan struct{})
	var evicting, using sync.WaitGroup
	for range 2 {
		evicting.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, err := evictor.trim(t.Context()) // without the lock of the process, like another one
					if err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for range 4 {
		using.Go(func() {
			c, err := Open(dir, 0)
			if err != nil {
				t.Error(err)
				return
			}
			for i := range 300 {
				useOnce(t, c, fmt.Sprint(i%3))
			}
		})
	}
	using.Wait()
	close(stop)
	evicting.Wait()
	if trim(t, evictor); stats(t, evictor).Packs != 0 {
		t.Error("packs that nobody uses stay")
	}
}

// useOnce opens a pack, which then must stay what its name means.
func useOnce(t *testing.T, c *Cache, name string) {
	p, err := c.Pack(name, 4)
	if err != nil {
		t.Error(err)
		return
	}
	defer p.Close()
	if dst := make([]byte, 4*PageSize); p.Read(dst, 0) && !bytes.Equal(dst, content(name, 0, 4)) {
		t.Errorf("other bytes in %s", name)
	}
	if err := p.Write(content(name, 0, 4), 0); err != nil {
		t.Error(err)
	}
	checkRead(t, p, name, 0, 4, true)
	for _, f := range []*os.File{p.pages, p.sums} {
		mine, err := f.Stat()
		if err != nil {
			t.Error(err)
			return
		}
		if named, err := os.Stat(f.Name()); err != nil || !os.SameFile(mine, named) {
			t.Errorf("%s was taken away from its user: %v", f.Name(), err)
		}
	}
}
