// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// TestSandboxSeesItsOwnLimits asks the usual tools.
func TestSandboxSeesItsOwnLimits(t *testing.T) {
	t.Parallel()
	b := create(t, shared, "--cpu", "2", "--memory", "300", "--disk", "200")
	check := func(b box, what string) {
		for command, want := range map[string]string{
			"nproc":                                 "2",
			"free -m | awk '/^Mem:/ {print $2}'":    "300",
			"df -m / | awk 'NR == 2 {print $2}'":    "200",
			"df -m /tmp | awk 'NR == 2 {print $2}'": "300",
		} {
			if got := b.sh(command); got != want {
				t.Errorf("%s: %s says %s, not %s", what, command, got, want)
			}
		}
	}
	check(b, "source")
	cp := b.checkpoint("shape")
	clone := spawn(t, shared, cp)
	check(clone, "spawn")

	// An in-place restore takes CPUs and disk from the checkpoint, and the larger
	// of both memories.
	other := create(t, shared, "--cpu", "1", "--memory", "400", "--disk", "100", "--name", "other", "--metadata", "k=v")
	other.restore(cp)
	if sb := other.get(); sb.CPUCount != 2 || sb.DiskMB != 200 || sb.MemoryMB != 400 || sb.Name != "other" || sb.Metadata["k"] != "v" {
		t.Errorf("restored: %+v", sb)
	}
	if got := other.sh("nproc; df -m / | awk 'NR == 2 {print $2}'"); got != "2\n200" {
		t.Errorf("restored: CPUs and disk are %q", got)
	}
}

// TestPreparedEnginesHaveTheShapeAskedFor creates and spawns sandboxes of three
// shapes in turn, with fewer prepared engines than there is demand for. Each has its
// own limits, also and in particular where it runs in a prepared engine.
func TestPreparedEnginesHaveTheShapeAskedFor(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", harness.Settings{"pool": 3})
	shapes := []struct{ cpu, memory, disk string }{{"1", "256", "128"}, {"2", "512", "300"}, {"1", "384", "1024"}}
	checkpoints := make([]string, len(shapes))
	pool := func() client.Pool {
		t.Helper()
		st, err := api(t, s).Status(t.Context())
		must(t, err)
		return st.Pool
	}
	// pooled makes sandboxes of a shape until one runs in a prepared engine: the first
	// says that there is demand for it.
	pooled := func(what string, i int, box func() box) {
		t.Helper()
		want := shapes[i].cpu + "\n" + shapes[i].memory + "\n" + shapes[i].disk
		await(t, "an engine is prepared, and used, for a "+what+" of shape "+strconv.Itoa(i), func() bool {
			before := pool()
			b := box()
			hit := pool().Hits > before.Hits
			if got := b.sh("nproc; free -m | awk '/^Mem:/ {print $2}'; df -m / | awk 'NR == 2 {print $2}'"); got != want {
				t.Errorf("%s of shape %d, in a prepared engine: %v: it shows %q, not %q", what, i, hit, got, want)
			}
			if checkpoints[i] == "" {
				checkpoints[i] = b.checkpoint("shape")
			}
			oc(t, s, "kill", b.id)
			return hit
		})
	}
	for range count(2, 10) {
		for i, shape := range shapes {
			pooled("create", i, func() box {
				return create(t, s, "--cpu", shape.cpu, "--memory", shape.memory, "--disk", shape.disk)
			})
			pooled("spawn", i, func() box { return spawn(t, s, checkpoints[i]) })
		}
	}
}

// TestMisbehavedSandboxHurtsOnlyItself runs out of everything in one sandbox, while
// another one and the server answer.
func TestMisbehavedSandboxHurtsOnlyItself(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	good := create(t, s)
	good.count()
	for name, c := range map[string]struct {
		script string
		over   func(harness.Output, box) bool
	}{
		"memory hog": {
			`python3 -c 'x = []
while True: x.append(bytearray(b"x" * (4 << 20)))'`,
			func(out harness.Output, _ box) bool { return out.Code != 0 },
		},
		"memory hog in /dev/shm": {
			`cat /dev/zero >/dev/shm/full`,
			func(out harness.Output, _ box) bool { return out.Code != 0 },
		},
		"full disk": {
			`cat /dev/zero >full; df -m / | tail -n 1; sync`,
			func(out harness.Output, b box) bool {
				return strings.Contains(out.Stderr, "No space left on device") && b.sh("rm full; echo more >more; cat more") == "more"
			},
		},
		"fork bomb": {
			`bomb() { bomb | bomb & }; bomb; sleep 4`,
			func(harness.Output, box) bool { return true },
		},
		"many files": {
			`i=0; while [ $i -lt 20000 ]; do i=$((i+1)); : >f$i; done; ls | wc -l`,
			func(out harness.Output, _ box) bool { return out.Stdout == "20000\n" },
		},
	} {
		bad := create(t, s, "--memory", "256", "--disk", "100")
		done := make(chan harness.Output, 1)
		go func() {
			out, _ := s.Run(t.Context(), nil, "exec", bad.id, "--timeout", "60", "--", "bash", "-c", c.script)
			done <- out
		}()
		for running := true; running; {
			select {
			case out := <-done:
				if !c.over(out, bad) {
					t.Errorf("%s: ended with\n%s\nand the sandbox is %+v", name, out, bad.get())
				}
				running = false
			default:
			}
			good.answers()
			if text := oc(t, s, "ls"); !strings.Contains(text, good.id) {
				t.Errorf("%s: oc ls:\n%s", name, text)
			}
		}
		oc(t, s, "kill", bad.id)
	}
	good.ticks()
}

// TestRequestsBeyondTheMachineAreRefused asks for more than there is.
func TestRequestsBeyondTheMachineAreRefused(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{
		{"--cpu", "4096"}, {"--cpu", "-1"}, {"--memory", "1"}, {"--memory", "1000000000"}, {"--disk", "1"}, {"--disk", "999999999"},
		{"--timeout", "-1"},
	} {
		out := invoke(t, shared, nil, append([]string{"create", "--template", "small"}, flags...)...)
		if out.Code != 3 && out.Code != 1 || !strings.Contains(out.Stderr, "Error: ") {
			t.Errorf("%s", out)
		}
	}
}

// TestGuestCannotReachItsAgentsChannel tries the things that an unprivileged
// user and the guest's root can do to PID 1.
func TestGuestCannotReachItsAgentsChannel(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	bystander := create(t, shared)
	for _, attempt := range []string{
		"cat /proc/1/fd/0", "echo junk >/proc/1/fd/0", "ls -l /proc/1/fd/", "cat /proc/1/mem", "cat /proc/1/environ",
		"kill -9 1", "kill -STOP 1", "kill -TERM 1", "echo x >/.oc/agent", "rm -rf /.oc", "python3 -c 'import socket; socket.fromfd(0, socket.AF_UNIX, socket.SOCK_SEQPACKET).send(b\"x\")'",
		"echo x >/etc/hostname", "mount -t tmpfs none /mnt", "cat /dev/mem", "umount /run", "echo 1 >/proc/sys/kernel/panic",
		"python3 -c 'import os; os.pidfd_getfd'", "nsenter -t 1 -a true",
	} {
		out := b.exec("bash", "-c", attempt)
		if out.Code == 0 && !strings.Contains(attempt, "pidfd_getfd") {
			t.Errorf("an unprivileged user may: %s", out)
		}
	}
	b.answers()

	// The user's own processes are bounded by the quota of its disk, not by /run.
	b.exec("bash", "-c", "head -c 50000000 /dev/zero >/tmp/fill; head -c 1000000 /dev/zero >/run/fill")
	b.answers()

	// Root inside can break its own sandbox, and no other.
	for _, attempt := range []string{"kill -9 1", "echo junk >/proc/1/fd/0", "head -c 900000000 /dev/zero >/run/fill", "rm -rf --no-preserve-root /* 2>/dev/null"} {
		victim := create(t, shared, "--memory", "256")
		out, err := shared.Run(t.Context(), nil, "exec", victim.id, "--user", "root", "--timeout", "20", "--", "bash", "-c", attempt)
		t.Logf("%s: exit code %d, %v; then it is %s", attempt, out.Code, err, victim.get().Status)
		bystander.answers()
	}
	if n, err := strconv.Atoi(bystander.sh("ps -e --no-headers | wc -l")); err != nil || n > 10 {
		t.Errorf("the bystander has %d processes, %v", n, err)
	}
}

// TestSandboxWhoseAgentIsStoppedIsRefusedACheckpoint stops PID 1 as the guest's
// root. What needs it fails in bounded time; what does not, works.
func TestSandboxWhoseAgentIsStoppedIsRefusedACheckpoint(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.count()
	cp := b.checkpoint("well")
	stop := func() {
		ctx, cancel := context.WithTimeout(t.Context(), commandTime)
		defer cancel()
		c := shared.Command(ctx, "exec", b.id, "--user", "root", "--", "bash", "-c", "kill -STOP 1; sleep 1000")
		must(t, c.Start())
		await(t, "the agent is stopped", func() bool {
			probe, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := shared.Run(probe, nil, "exec", "list", b.id)
			return err != nil
		})
		must(t, c.Process.Signal(unix.SIGTERM)) // cannot be passed on
		_ = c.Wait()
		if code := c.ProcessState.ExitCode(); code != 255 {
			t.Errorf("oc exec ended with %d", code)
		}
	}
	stop()
	refused(t, shared, 5, []string{"agent", "no checkpoint was made"}, "checkpoint", "create", b.id, "--name", "sick")
	b.restore(cp)
	b.countOn(5)
	stop()
	oc(t, shared, "kill", b.id)
}

// TestKilledSandboxIsGone ends one with everything in it, twice.
func TestKilledSandboxIsGone(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.count()
	for range 2 {
		if text := oc(t, shared, "kill", b.id); text != "Sandbox "+b.id+" killed." {
			t.Errorf("oc kill: %s", text)
		}
	}
	if sb := b.get(); sb.Status != client.StatusStopped || sb.Reason != "user_requested" {
		t.Errorf("it is %s (%s)", sb.Status, sb.Reason)
	}
	if text := oc(t, shared, "ls"); strings.Contains(text, b.id) {
		t.Errorf("oc ls shows it:\n%s", text)
	}
	refused(t, shared, 3, []string{b.id, "stopped"}, "exec", b.id, "--", "true")
}

// TestGuestCannotFillTheHost has root inside print without end as PID 1, whose
// output is the host's.
func TestGuestCannotFillTheHost(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	for _, fd := range []string{"1", "2"} {
		b.exec("true") // the sandbox answers before and after
		invoke(t, shared, nil, "exec", b.id, "--user", "root", "--", "sh", "-c", "timeout 2 head -c 64M /dev/zero >/proc/1/fd/"+fd)
	}
	var size int64
	err := filepath.WalkDir("/run/opencomputer", func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // others' generations come and go
		}
		if st, err := d.Info(); err == nil {
			size += st.Size()
		}
		return nil
	})
	must(t, err)
	if most := int64(16 << 20); size > most {
		t.Errorf("the run-time directories hold %d MB", size>>20)
	}
	if out := b.sh("echo here"); out != "here" {
		t.Errorf("it answers %q", out)
	}
}
