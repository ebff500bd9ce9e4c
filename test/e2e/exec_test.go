// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/client"
)

// TestExecBehavesLikeALocalCommand compares argv, streams, directory,
// environment and exit codes.
func TestExecBehavesLikeALocalCommand(t *testing.T) {
	t.Parallel()
	b := create(t, shared, "--env", "FROM_SANDBOX=s", "--env", "OVER=old")
	for _, c := range []struct {
		args           []string
		stdin          string
		code           int
		stdout, stderr string
	}{
		{[]string{"--", "printf", "%s|", "a b", "", "c'd", `"e"`, "*", "$HOME", "new\nline", "ü"}, "", 0, "a b||c'd|\"e\"|*|$HOME|new\nline|ü|", ""},
		{[]string{"--", "bash", "-c", "echo out; echo err >&2; exit 7"}, "", 7, "out\n", "err\n"},
		{[]string{"--", "cat"}, "some\x00 input\xff", 0, "some\x00 input\xff", ""},
		{[]string{"--", "wc", "-c"}, strings.Repeat("x", 300_000), 0, "300000\n", ""},
		{[]string{"--", "pwd"}, "", 0, "/home/sandbox\n", ""},
		{[]string{"--cwd", "/usr/bin", "--", "pwd"}, "", 0, "/usr/bin\n", ""},
		{[]string{"--cwd", "/nonesuch", "--", "pwd"}, "", 3, "", "working directory /nonesuch does not exist"},
		{[]string{"--env", "A=1", "--env", "OVER=new", "--", "bash", "-c", "echo $A $OVER $FROM_SANDBOX $USER $HOME"}, "", 0, "1 new s sandbox /home/sandbox\n", ""},
		{[]string{"--", "bash", "-c", "kill -TERM $$"}, "", 143, "", ""},
		{[]string{"--", "nonesuch"}, "", 127, "", "nonesuch"},
		{[]string{"--", "/etc/passwd"}, "", 126, "", "ermission denied"},
		{[]string{"--timeout", "1", "--", "sleep", "100"}, "", 137, "", ""},
		{[]string{"--user", "root", "--", "id", "-un"}, "", 0, "root\n", ""},
		{[]string{"--wait", "--", "echo", "waited"}, "", 0, "waited\n", ""},
		{[]string{"--", "test", "-t", "0"}, "", 1, "", ""},
		{[]string{"--", "ls", "--json"}, "", 2, "", "--json"},
	} {
		out := invoke(t, shared, strings.NewReader(c.stdin), append([]string{"exec", b.id}, c.args...)...)
		if out.Code != c.code || out.Stdout != c.stdout || !strings.Contains(out.Stderr, c.stderr) || c.stderr == "" && c.code == 0 && out.Stderr != "" {
			t.Errorf("want %d %q %q:\n%s", c.code, c.stdout, c.stderr, out)
		}
	}
	out := invoke(t, shared, nil, "exec", b.id, "--json", "--", "bash", "-c", "echo o; echo e >&2; exit 9")
	if want := "{\n  \"exitCode\": 9,\n  \"stdout\": \"o\\n\",\n  \"stderr\": \"e\\n\"\n}\n"; out.Code != 9 || out.Stdout != want {
		t.Errorf("%s", out)
	}
}

// TestExecStreams answers lines while the command runs, and forwards signals.
func TestExecStreams(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	ctx, cancel := context.WithTimeout(t.Context(), commandTime)
	defer cancel()
	c := shared.Command(ctx, "exec", b.id, "--", "bash", "-c", `trap 'echo got usr1' USR1; trap 'echo got int; exit 5' INT
		while IFS= read -r line || [ $? -gt 128 ]; do echo "you said $line"; done; echo end; read -r never </dev/zero & wait`)
	stdin, err := c.StdinPipe()
	must(t, err)
	stdout, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	lines := bufio.NewReader(stdout)
	expect := func(want string) {
		t.Helper()
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatalf("waiting for %q: %v", want, err)
			}
			if strings.TrimSpace(line) == want {
				return
			}
		}
	}
	for i := range 3 {
		fmt.Fprintf(stdin, "line %d\n", i)
		expect(fmt.Sprintf("you said line %d", i))
	}
	must(t, c.Process.Signal(unix.SIGUSR1))
	expect("got usr1")
	must(t, stdin.Close())
	expect("end")
	must(t, c.Process.Signal(unix.SIGINT))
	expect("got int")
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != 5 {
		t.Errorf("the exit code is %d", code)
	}
}

// TestDetachedSessionIsListedAttachedAndKilled is the life of a session nobody
// waits for.
func TestDetachedSessionIsListedAttachedAndKilled(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	text := oc(t, shared, "exec", b.id, "--detach", "--", "bash", "-c", "echo hello; read -r x; echo got $x; exit 4")
	session := ""
	if _, err := fmt.Sscanf(text, "Session %s created", &session); err != nil || !strings.Contains(text, "Attach with: oc exec attach "+b.id+" "+session) {
		t.Fatalf("oc exec --detach: %s", text)
	}
	if list := oc(t, shared, "exec", "list", b.id); !strings.Contains(list, session+"  running  bash -c") {
		t.Errorf("oc exec list: %s", list)
	}
	out := invoke(t, shared, strings.NewReader("word\n"), "exec", "attach", b.id, session)
	if out.Code != 4 || out.Stdout != "hello\ngot word\n" {
		t.Errorf("%s", out)
	}
	if again := invoke(t, shared, nil, "exec", "attach", b.id, session); again.Code != 4 || again.Stdout != out.Stdout {
		t.Errorf("attached once more: %s", again)
	}
	sleeper := b.start("sleep", "1000")
	if text := oc(t, shared, "exec", "kill", b.id, sleeper, "--signal", "15"); text != "Session "+sleeper+" killed" {
		t.Errorf("oc exec kill: %s", text)
	}
	if out := invoke(t, shared, nil, "exec", "attach", b.id, sleeper); out.Code != 143 {
		t.Errorf("%s", out)
	}
	refused(t, shared, 3, []string{"not found"}, "exec", "attach", b.id, "se-nonesuch")
}

// TestShortCommandsAreExact runs many that end at once, each with its own output
// and exit code, several at a time.
func TestShortCommandsAreExact(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	c := api(t, shared)
	total := count(1000, 10_000)
	next := make(chan int)
	results := make(chan error)
	const workers = 8
	for range workers {
		go func() {
			for i := range next {
				want := client.ExecResult{ExitCode: i % 200, Stdout: fmt.Sprintf("out %d\n", i), Stderr: fmt.Sprintf("err %d\n", i)}
				res, err := c.RunExec(t.Context(), b.id, client.ExecRequest{
					Cmd: "/bin/sh", Args: []string{"-c", fmt.Sprintf("echo out %d; echo err %d >&2; exit %d", i, i, i%200)},
				})
				if err == nil && res != want {
					err = fmt.Errorf("%d: %+v", i, res)
				}
				results <- err
			}
		}()
	}
	go func() {
		defer close(next)
		for i := range total {
			next <- i
		}
	}()
	for range total {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// slowly writes to w after waiting for a while, again and again: a reader that
// does not keep up.
type slowly struct {
	w    io.Writer
	left int // bytes until it waits
}

func (s *slowly) Write(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		s.left = 4 << 20
		<-time.After(20 * time.Millisecond)
	}
	return s.w.Write(p)
}

// TestLargeOutputIsWholeThroughASlowReader compares the hash of 100 MB.
func TestLargeOutputIsWholeThroughASlowReader(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	const mb = 100
	script := fmt.Sprintf(`import random, sys, hashlib
r, h = random.Random(5), hashlib.sha256()
for _ in range(%d):
    block = r.randbytes(1 << 20); h.update(block); sys.stdout.buffer.write(block)
sys.stderr.write(h.hexdigest())`, mb)
	ctx, cancel := context.WithTimeout(t.Context(), commandTime)
	defer cancel()
	c := shared.Command(ctx, "exec", b.id, "--", "python3", "-c", script)
	sum, stderr := sha256.New(), &bytes.Buffer{}
	counted := &counter{w: sum}
	c.Stdout, c.Stderr = &slowly{w: counted}, stderr
	must(t, c.Run())
	if got := hex.EncodeToString(sum.Sum(nil)); counted.n != mb<<20 || got != stderr.String() {
		t.Errorf("%d bytes with the hash %s instead of %s", counted.n, got, stderr)
	}
}

type counter struct {
	w io.Writer
	n int
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	return c.w.Write(p)
}

// TestPushAndPullKeepFilesAndDirectories copies a tree there and back.
func TestPushAndPullKeepFilesAndDirectories(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	src := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(src, "tree", "empty"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "tree", "run me.sh"), []byte("#!/bin/bash\necho ran\n"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "tree", "secret"), []byte{0, 1, 2, 255}, 0o600))
	must(t, os.WriteFile(filepath.Join(src, "tree", "big"), bytes.Repeat([]byte("0123456789abcdef"), 1<<20), 0o644))
	must(t, os.Symlink("secret", filepath.Join(src, "tree", "link")))

	oc(t, shared, "push", b.id, filepath.Join(src, "tree"), "tree")
	if got := b.sh("tree/'run me.sh'; readlink tree/link; stat -c '%a %U' tree/secret; ls tree"); got != "ran\nsecret\n600 sandbox\nbig\nempty\nlink\nrun me.sh\nsecret" {
		t.Errorf("in the sandbox: %s", got)
	}
	oc(t, shared, "pull", b.id, "tree", filepath.Join(src, "back"))
	if out, err := exec.CommandContext(t.Context(), "diff", "-r", "--no-dereference", filepath.Join(src, "tree"), filepath.Join(src, "back")).CombinedOutput(); err != nil {
		t.Errorf("what came back differs: %s", out)
	}
	for name, mode := range map[string]os.FileMode{"run me.sh": 0o755, "secret": 0o600} {
		if st, err := os.Stat(filepath.Join(src, "back", name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
	}
	oc(t, shared, "push", b.id, filepath.Join(src, "tree", "secret"), "/tmp/one")
	oc(t, shared, "pull", b.id, "/tmp/one", filepath.Join(src, "one"))
	if got, err := os.ReadFile(filepath.Join(src, "one")); err != nil || !bytes.Equal(got, []byte{0, 1, 2, 255}) {
		t.Errorf("the file that came back: %v %v", got, err)
	}
}

// TestShellHasATerminalThatResizes runs oc shell on a terminal.
func TestShellHasATerminalThatResizes(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	host, guest := openTerminal(t)
	must(t, unix.IoctlSetWinsize(int(guest.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 101}))
	c := shared.Command(t.Context(), "shell", b.id)
	c.Stdin, c.Stdout, c.Stderr = guest, guest, guest
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	must(t, c.Start())
	must(t, guest.Close())
	seen := make(chan string, 1024)
	go func() {
		defer close(seen)
		buf := make([]byte, 4096)
		for {
			n, err := host.Read(buf)
			if err != nil {
				return
			}
			seen <- string(buf[:n])
		}
	}()
	expect := func(line, want string) {
		t.Helper()
		if line != "" {
			_, err := io.WriteString(host, line+"\r")
			must(t, err)
		}
		text, timeout := "", time.After(awaitTime)
		for !strings.Contains(text, want) {
			select {
			case chunk, ok := <-seen:
				if !ok {
					t.Fatalf("the shell ended after %q", text)
				}
				text += chunk
			case <-timeout:
				t.Fatalf("%q was answered with %q, not %q", line, text, want)
			}
		}
	}
	expect("", "$ ")
	expect("stty size; tty; echo $TERM", "xterm-256color\r\n")
	expect("echo size $(stty size)", "size 33 101\r\n")
	must(t, unix.IoctlSetWinsize(int(host.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 20, Col: 70}))
	must(t, c.Process.Signal(unix.SIGWINCH))
	await(t, "the size is the new one", func() bool {
		_, err := io.WriteString(host, "echo now $(stty size).\r")
		must(t, err)
		expect("", ".\r\n")
		_, err = io.WriteString(host, "[ \"$(stty size)\" = '20 70' ] && echo resi''zed || echo no''ne\r")
		must(t, err)
		text := ""
		for !strings.Contains(text, "resized\r\n") && !strings.Contains(text, "none\r\n") {
			chunk, ok := <-seen
			if !ok {
				t.Fatal("the shell ended")
			}
			text += chunk
		}
		return strings.Contains(text, "resized\r\n")
	})
	expect(`sh -c 'echo slee""ping; exec sleep 100'`, "sleeping\r\n") // it is in the foreground by then
	_, err := io.WriteString(host, "\x03")                            // Ctrl-C reaches the remote process only
	must(t, err)
	expect("echo still $((40+2))", "still 42\r\n")
	_, err = io.WriteString(host, "exit\r")
	must(t, err)
	must(t, c.Wait())
}

// openTerminal makes a pseudo terminal.
func openTerminal(t *testing.T) (host, guest *os.File) {
	t.Helper()
	host, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { host.Close() })
	must(t, unix.IoctlSetPointerInt(int(host.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(host.Fd()), unix.TIOCGPTN)
	must(t, err)
	guest, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	return host, guest
}
