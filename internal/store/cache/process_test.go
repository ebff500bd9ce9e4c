// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
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
