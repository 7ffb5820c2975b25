package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Children of a process that it has not buried yet.
func Children(pid int) (found []int) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range threads {
		text, _ := os.ReadFile(path)
		for _, field := range strings.Fields(string(text)) {
			child, _ := strconv.Atoi(field)
			found = append(found, child)
		}
	}
	return found
}

// Gone, or a zombie whose parent takes its time?
func Gone(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	return fields[0] == "Z" || fields[0] == "X"
}

// Workers the front has started and not yet buried.
func (p *Plugin) Workers() []int { return Children(p.PID()) }

// KillWorkers with SIGKILL; how many there were.
func (p *Plugin) KillWorkers() int {
	pids := p.Workers()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return len(pids)
}

const endedLine = "PKCS#11 worker ended; starting another"

// Ends of workers, as the log tells of them.
func (p *Plugin) Ends() (ends []Line) {
	for _, line := range p.Logs.Lines() {
		if line.Message == endedLine {
			ends = append(ends, line)
		}
	}
	return ends
}

// Deaths of workers: all ends but those that the front wished for. What a worker that dies leaves of
// an object makes SoftHSM fail, and the front ask a fresh one.
func (p *Plugin) Deaths() []Line {
	return slices.DeleteFunc(p.Ends(), func(end Line) bool {
		return strings.Contains(end.Fields["reason"], "a new PKCS#11 worker tries it again")
	})
}

// Resources of front and worker that may not grow.
type Resources struct {
	front, worker []string // what their descriptors are
	kilobytes     int      // resident, of the front
}

func descriptors(pid int) (all []string) {
	entries, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, entry := range entries {
		to, _ := os.Readlink(entry)
		all = append(all, to)
	}
	return all
}

// Sanitized says whether a sanitizer is in it, which keeps what was freed.
func (p *Plugin) Sanitized() bool {
	maps, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.PID()))
	return bytes.Contains(maps, []byte("/libasan.so")) || bytes.Contains(maps, []byte("/libtsan.so"))
}

// Resources it has now.
func (p *Plugin) Resources() Resources {
	r := Resources{front: descriptors(p.PID())}
	if pids := p.Workers(); len(pids) == 1 {
		r.worker = descriptors(pids[0])
	}
	if p.Sanitized() {
		return r
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, "VmRSS:") {
			_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &r.kilobytes)
		}
	}
	return r
}

// GrewSince before? SoftHSM opens a file for a moment now and then, and the front connects
// to the host's Metrics service when gRPC sees fit: what leaks leaks more often than twice.
func (r Resources) GrewSince(before Resources) bool {
	const (
		extra  = 2        // descriptors
		growth = 16 << 10 // kB
	)
	return len(r.front) > len(before.front)+extra || len(r.worker) > len(before.worker)+extra && before.worker != nil ||
		r.kilobytes > before.kilobytes+growth
}

func (r Resources) String() string {
	return fmt.Sprintf("front's descriptors %v, worker's %v, front's resident kB %d", r.front, r.worker, r.kilobytes)
}
