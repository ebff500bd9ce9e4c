// SPDX-License-Identifier: Apache-2.0

// Package cgroup gives each generation a control group of its own, on cgroup
// v1 and v2 alike, and is how a generation is ended to its last process.
//
// It is told a parent name and limits; it knows nothing of engines. All
// groups live below one parent directory per controller, so that what is left
// behind by a crash can be listed and removed.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a group. Zero means none.
type Limits struct {
	MemoryBytes int64
	CPUs        int // CPU time, in cores
	Pids        int
}

// Hierarchy is the place of our groups on this host.
type Hierarchy struct {
	v2     bool
	roots  map[string]string // controller → mount point (v2: one entry "")
	parent string            // path below each mount point
}

// controllers that we use, by their v1 names.
var controllers = [...]string{"memory", "cpu", "pids"}

// cpuPeriod is the CFS period in µs over which CPU time is limited: the kernel's
// default (sched-bwc.rst), which is what a new group of version 1 has.
const cpuPeriod = 100_000

// Detect finds the host's cgroup mounts from /proc/self/mounts and makes the
// parent group.
func Detect(parent string) (*Hierarchy, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	defer f.Close()
	var lines []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		lines = append(lines, sc.Text())
	}
	return New(lines, parent)
}

// New builds a hierarchy from the lines of a mount table, and makes the parent
// group in it.
func New(mounts []string, parent string) (*Hierarchy, error) {
	h, err := parse(mounts, parent)
	if err != nil {
		return nil, err
	}
	return h, h.makeParents()
}

// parse finds the hierarchy in the lines of a mount table. v1 controllers win
// where both versions are mounted, because a controller bound to v1 is not
// available in v2.
func parse(mounts []string, parent string) (*Hierarchy, error) {
	h := &Hierarchy{roots: map[string]string{}, parent: parent}
	unified := ""
	for _, l := range mounts {
		f := strings.Fields(l)
		if len(f) < 4 {
			continue
		}
		switch f[2] {
		case "cgroup2":
			if unified == "" {
				unified = unescape(f[1])
			}
		case "cgroup":
			opts := strings.Split(f[3], ",")
			for _, c := range controllers {
				if slices.Contains(opts, c) && h.roots[c] == "" { // the first of several mounts
					h.roots[c] = unescape(f[1])
				}
			}
		}
	}
	if len(h.roots) == len(controllers) {
		return h, nil
	}
	if unified == "" {
		return nil, errors.New("cgroup: neither v1 memory, cpu and pids controllers nor a v2 hierarchy are mounted; mount cgroup2 on /sys/fs/cgroup")
	}
	h.v2, h.roots = true, map[string]string{"": unified}
	return h, nil
}

// unescape undoes what a mount table does to blanks and backslashes (fstab(5)).
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

func (h *Hierarchy) makeParents() error {
	for _, root := range h.roots {
		dir := root
		if h.v2 {
			if err := enable(dir); err != nil {
				return err
			}
		}
		for _, part := range strings.Split(strings.Trim(h.parent, "/"), "/") {
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("cgroup: making the parent group: %w", err)
			}
			if h.v2 {
				if err := enable(dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// enable lets the children of a v2 group use our controllers.
func enable(dir string) error {
	want := "+memory +cpu +pids"
	if err := write(filepath.Join(dir, "cgroup.subtree_control"), want); err != nil {
		return fmt.Errorf("cgroup: enabling %s in %s: %w", want, dir, err)
	}
	return nil
}

// dirs are the group's directories, one per mount point.
func (h *Hierarchy) dirs(name string) []string {
	var out []string
	for _, root := range h.roots {
		if d := filepath.Join(root, h.parent, name); !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	slices.Sort(out)
	return out
}

// Create makes the group and sets its limits.
func (h *Hierarchy) Create(name string, l Limits) error {
	for _, d := range h.dirs(name) {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	for _, w := range h.settings(name, l) {
		if err := w.Apply(); err != nil && (!w.optional || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// Setting is a control file to write.
type Setting struct {
	File  string `json:"file"`
	Value string `json:"value"`

	optional bool // the file may be missing
}

// Apply writes it.
func (s Setting) Apply() error {
	if err := write(s.File, s.Value); err != nil {
		return fmt.Errorf("cgroup: setting %s: %w", s.File, err)
	}
	return nil
}

// CPUs is the setting that limits a group's CPU time to that of n CPUs; 0 lifts
// the limit.
func (h *Hierarchy) CPUs(name string, n int) Setting {
	if h.v2 {
		quota := "max"
		if n > 0 {
			quota = strconv.Itoa(n * cpuPeriod)
		}
		return Setting{File: filepath.Join(h.roots[""], h.parent, name, "cpu.max"), Value: fmt.Sprintf("%s %d", quota, cpuPeriod)}
	}
	quota := -1
	if n > 0 {
		quota = n * cpuPeriod
	}
	return Setting{File: filepath.Join(h.roots["cpu"], h.parent, name, "cpu.cfs_quota_us"), Value: strconv.Itoa(quota)}
}

// settings are the files to write and their contents, in order. Swap is denied
// where the kernel accounts for it: the memory limit would not hold otherwise.
func (h *Hierarchy) settings(name string, l Limits) []Setting {
	at := func(controller, file string) string {
		if h.v2 {
			controller = ""
		}
		return filepath.Join(h.roots[controller], h.parent, name, file)
	}
	var out []Setting
	set := func(controller, file, value string) {
		out = append(out, Setting{File: at(controller, file), Value: value})
	}
	if memory := strconv.FormatInt(l.MemoryBytes, 10); l.MemoryBytes > 0 && h.v2 {
		set("memory", "memory.max", memory)
		set("memory", "memory.oom.group", "0")
		out = append(out, Setting{at("memory", "memory.swap.max"), "0", true})
	} else if l.MemoryBytes > 0 {
		set("memory", "memory.limit_in_bytes", memory)
		out = append(out, Setting{at("memory", "memory.memsw.limit_in_bytes"), memory, true}) // memory and swap together
	}
	if l.CPUs > 0 {
		out = append(out, h.CPUs(name, l.CPUs))
	}
	if l.Pids > 0 {
		set("pids", "pids.max", strconv.Itoa(l.Pids))
	}
	return out
}

// outsideEnd is how long RemoveParent waits for processes of the node to end.
const outsideEnd = 3 * time.Second

// outside is the group of processes that belong to the node and no generation.
const outside = "node"

// Outside moves a process, whose parent may be in a group that somebody ends,
// into a group of ours without limits. It is not listed as a generation's.
func (h *Hierarchy) Outside(pid int) error {
	for _, d := range h.dirs(outside) {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cgroup: %w", err)
		}
		if err := write(filepath.Join(d, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("cgroup: moving process %d to %s: %w", pid, d, err)
		}
	}
	return nil
}

// ProcsFiles are the files to write a pid to for it to join the group.
func (h *Hierarchy) ProcsFiles(name string) []string {
	var out []string
	for _, d := range h.dirs(name) {
		out = append(out, filepath.Join(d, "cgroup.procs"))
	}
	return out
}

// Join moves the calling process into a group given by its ProcsFiles. What it
// starts from then on is in the group too.
func Join(procsFiles []string) error {
	for _, f := range procsFiles {
		if err := write(f, "0"); err != nil {
			return fmt.Errorf("cgroup: joining: %w", err)
		}
	}
	return nil
}

// Procs lists the processes of the group. A missing group has none.
func (h *Hierarchy) Procs(name string) ([]int, error) {
	var pids []int
	for _, f := range h.ProcsFiles(name) {
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		for _, w := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(w); err == nil && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// MemoryUsage is the memory charged to the group, in bytes; 0 if unknown.
func (h *Hierarchy) MemoryUsage(name string) int64 {
	file := filepath.Join(h.roots["memory"], h.parent, name, "memory.usage_in_bytes")
	if h.v2 {
		file = filepath.Join(h.roots[""], h.parent, name, "memory.current")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// List names the groups below our parent.
func (h *Hierarchy) List() ([]string, error) {
	var names []string
	for _, root := range h.roots {
		es, err := os.ReadDir(filepath.Join(root, h.parent))
		if err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		for _, e := range es {
			if e.IsDir() && e.Name() != outside && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// Kill ends every process of the group, again until none is left, and removes
// it. A missing group is nil.
func (h *Hierarchy) Kill(ctx context.Context, name string) error {
	wait := time.Millisecond
	for {
		pids, err := h.Procs(name)
		if err != nil {
			return err
		}
		if err := kill(name, pids); err != nil {
			return err
		}
		for _, pid := range pids {
			// Where we are its parent or reaper, take it from the process table.
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
		if len(pids) == 0 {
			if err := h.remove(name); err == nil || !errors.Is(err, unix.EBUSY) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup: %d processes of %s survive SIGKILL: %w", len(pids), name, ctx.Err())
		case <-time.After(wait):
			wait = min(2*wait, 50*time.Millisecond)
		}
	}
}

// KillNow sends SIGKILL to every process of the group and does not wait: none
// of them executes another instruction of its own.
func (h *Hierarchy) KillNow(name string) error {
	pids, err := h.Procs(name)
	if err != nil {
		return err
	}
	return kill(name, pids)
}

func kill(name string, pids []int) error {
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("cgroup: killing %d of %s: %w", pid, name, err)
		}
	}
	return nil
}

func (h *Hierarchy) remove(name string) error {
	for _, d := range h.dirs(name) {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cgroup: removing %s: %w", d, err)
		}
	}
	return nil
}

// RemoveParent removes the parent group with that of the node's processes, and
// those above it that we made, where they are empty. It waits a while for the
// last processes to be gone.
func (h *Hierarchy) RemoveParent() {
	for end := time.Now().Add(outsideEnd); h.removeParent() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

// removeParent tells whether something was in use.
func (h *Hierarchy) removeParent() (busy bool) {
	busy = errors.Is(h.remove(outside), unix.EBUSY)
	for _, root := range h.roots {
		dir := strings.Trim(h.parent, "/")
		busy = errors.Is(unix.Rmdir(filepath.Join(root, dir)), unix.EBUSY) || busy
		for dir = filepath.Dir(dir); dir != "."; dir = filepath.Dir(dir) {
			_ = unix.Rmdir(filepath.Join(root, dir)) // not empty: another's are there
		}
	}
	return busy
}

// write sets a control file: one write call, no create.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
