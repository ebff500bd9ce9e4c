// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/engine/gvisor/disk"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

func TestReadLine(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	in := bufio.NewReaderSize(strings.NewReader(`{"id":1,"do":"pause"}`+"\n"+`{"id":2,"do":"`+long+`"}`+"\nnot json\n"+`{"id":3}`), 1<<10)
	for id := 1; id <= 2; id++ {
		if c, err := readLine[wire.Command](in); err != nil || c.ID != id {
			t.Fatalf("command %d: %d, %v", id, c.ID, err)
		}
	}
	var syntax *json.SyntaxError
	if _, err := readLine[wire.Command](in); !errors.As(err, &syntax) {
		t.Errorf("nonsense: %v", err)
	}
	if c, err := readLine[wire.Command](in); err != nil || c.ID != 3 { // the last line may be cut off
		t.Errorf("a line without an end: %+v, %v", c, err)
	}
	if _, err := readLine[wire.Command](in); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

// endless never ends a line, and counts what is taken of it.
type endless struct{ taken int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	e.taken += len(p)
	return len(p), nil
}

func TestReadLineIsBounded(t *testing.T) {
	t.Parallel()
	e := &endless{}
	if _, err := readLine[wire.Command](bufio.NewReader(e)); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("an endless line: %v", err)
	}
	if e.taken > 2*maxLine {
		t.Errorf("%d bytes of it were read", e.taken)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"version":1,"verb":"pause","targets":[{"generation":"gn-1","dir":"/x"}]}` + "\n"))
	f.Add([]byte("\n"))
	f.Add([]byte(`{"version":1e99}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(in), 64)
		for range len(in) + 1 {
			if _, err := readLine[wire.Request](r); errors.Is(err, io.EOF) {
				return
			}
		}
		t.Error("more lines than bytes")
	})
}

func TestSpecIsWhatTheShapeSays(t *testing.T) {
	t.Parallel()
	p := &wire.PrepareExtra{Hostname: "sb-1"}
	p.Shape.MemoryBytes, p.Shape.PidsMax = 5<<20, 77
	spec := ociSpec(p, disk.Attachment{RootPath: "/root"})
	if spec.Hostname != "sb-1" || spec.Root.Path != "/root" {
		t.Errorf("host name %q, root %q", spec.Hostname, spec.Root.Path)
	}
	if !strings.Contains(strings.Join(spec.Process.Env, " "), "OC_PIDS_MAX=77") {
		t.Errorf("environment %q", spec.Process.Env)
	}
	sized := 0
	for _, m := range spec.Mounts {
		if strings.Contains(strings.Join(m.Options, ","), "size=5242880") {
			sized++
		}
	}
	if sized != 3 { // /tmp, /run, /dev/shm
		t.Errorf("%d mounts are limited to the memory", sized)
	}
}
