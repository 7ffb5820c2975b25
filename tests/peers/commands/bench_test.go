package commands_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"spire-hsm/peers/host"
)

type measured struct {
	Token       struct{ Label string }
	Interrupted bool `json:"interrupted"`
	Types       []struct {
		Type  string `json:"type"`
		Steps []struct {
			Sessions   int     `json:"sessions"`
			Signatures int     `json:"signatures"`
			Failures   int     `json:"failures"`
			PerSecond  float64 `json:"signatures_per_second"`
			P50        float64 `json:"p50_ms"`
			P99        float64 `json:"p99_ms"`
		} `json:"steps"`
		Knee  int     `json:"knee"`
		SVIDs float64 `json:"svids_per_second"`
	} `json:"types"`
	MaxSessions int `json:"max_sessions"`
}

func (s *scene) howMany() int {
	s.Helper()
	return strings.Count(s.token.Tool(s, "--list-objects"), "label:")
}

func (s *scene) bench(status int, args ...string) (found measured, stderr string) {
	s.Helper()
	text, stderr := s.run(status, append([]string{"bench", "--config", s.data, "--trust-domain", "example.org",
		"--seconds", "1", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		s.Fatalf("%v\n%s%s", err, text, stderr)
	}
	return found, stderr
}

func TestBenchMeasuresAndLeavesNothing(t *testing.T) {
	s := newScene(t, "max_sessions = 3")
	s.generate("example.org", "x509-CA-A")
	before := s.howMany()
	found, _ := s.bench(fine)
	if len(found.Types) != 1 || found.Types[0].Type != "ec-p256" || len(found.Types[0].Steps) != 3 || found.Interrupted {
		t.Fatalf("%+v", found)
	}
	best := 0.0
	for i, step := range found.Types[0].Steps {
		if step.Sessions != []int{1, 2, 3}[i] || step.Signatures == 0 || step.Failures != 0 || step.PerSecond <= 0 ||
			step.P50 <= 0 || step.P99 < step.P50 {
			t.Fatalf("%+v", step)
		}
		best = max(best, step.PerSecond)
	}
	if found.MaxSessions != found.Types[0].Knee || found.Types[0].SVIDs < 0.9*best {
		t.Fatalf("the advice is not the knee: %+v", found)
	}
	if after := s.howMany(); after != before || before == 0 {
		t.Fatalf("%d objects before, %d after", before, after)
	}
}

// A token that takes 20 ms for a signature makes at most 50 a second and session.
func TestBenchIsNoFasterThanTheToken(t *testing.T) {
	s := faulty(t, "", "profile latency 20")
	found, _ := s.bench(fine)
	for _, step := range found.Types[0].Steps {
		if step.P50 < 20 || step.PerSecond > 50*float64(step.Sessions) {
			t.Fatalf("%+v", found)
		}
	}
	if found.Types[0].Knee == 1 {
		t.Fatalf("four at a time are no faster than one: %+v", found)
	}
}

func TestBenchTellsLinesWhereNobodyLooksOn(t *testing.T) {
	s := newScene(t, "")
	output := s.command(fine, "bench", "--seconds", "1", "--sessions", "2", "--all")
	for _, kind := range []string{"ec-p256", "ec-p384", "rsa-2048", "rsa-4096"} {
		s.contains(output, "type="+kind+" sessions=1 signatures_per_second=", "type="+kind+" sessions=2 ")
	}
	s.contains(output, "set max_sessions = ", "SVIDs per second")
	if strings.ContainsAny(output, "\r\033") || s.howMany() != 0 {
		t.Fatalf("%q", output)
	}
}

func TestBenchDrawsABarOnATerminal(t *testing.T) {
	s := newScene(t, "")
	cmd := exec.Command("script", "-qec", host.Binary(t)+" bench --config "+s.data+" --trust-domain example.org --seconds 1", "/dev/null")
	cmd.Env = append(os.Environ(), s.env...)
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	s.contains(string(output), "\r[", "] ", "ec-p256", "SIGNATURES/S", "set max_sessions")
}

// started runs bench until its first step has ended.
func (s *scene) started() (*exec.Cmd, *bufio.Reader, *bytes.Buffer) {
	s.Helper()
	var complaints bytes.Buffer
	cmd := exec.Command(host.Binary(s), "bench", "--config", s.data, "--trust-domain", "example.org", "--seconds", "1", "--sessions", "64")
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil {
		s.Fatalf("%q: %v\n%s", line, err, &complaints)
	}
	return cmd, lines, &complaints
}

func TestBenchLeavesNothingWhenItIsInterrupted(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		s := newScene(t, "")
		s.generate("example.org", "x509-CA-A")
		before := s.howMany()
		cmd, lines, complaints := s.started()
		if during := s.howMany(); during != before+2 {
			t.Fatalf("%d objects before, %d during", before, during)
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			if strings.Contains(line, "sessions=64") {
				t.Fatalf("%v: it went on to the end", signal)
			}
		}
		_ = cmd.Wait()
		if cmd.ProcessState.ExitCode() != cannot || !strings.Contains(complaints.String(), "interrupted; no trial key is left") {
			t.Fatalf("%v: %v\n%s", signal, cmd.ProcessState, complaints)
		}
		if after := s.howMany(); after != before {
			t.Fatalf("%v: %d objects before, %d after", signal, before, after)
		}
	}
}

func TestBenchLeavesNothingWhenTheModuleDies(t *testing.T) {
	s := faulty(t, "", "C_Sign 40 before segv once shared")
	found, _ := s.bench(fine)
	if found.Types[0].Steps[0].Failures != 0 {
		t.Fatalf("a crash has cost a call: %+v", found)
	}
	if left := s.howMany(); left != 0 {
		t.Fatalf("%d objects are left", left)
	}
	s = faulty(t, "", "C_Sign 40-999999 before CKR_FUNCTION_FAILED shared")
	found, stderr := s.bench(cannot)
	s.contains(stderr, "CKR_FUNCTION_FAILED")
	if left := s.howMany(); left != 0 {
		t.Fatalf("%d objects are left: %+v", left, found)
	}
}

func TestBenchSaysWhatItCannotDo(t *testing.T) {
	s := newScene(t, "destroy_superseded = false")
	s.contains(s.command(cannot, "bench"), "destroy_superseded = false")
	s = newScene(t, "")
	for _, args := range [][]string{{"--seconds", "0"}, {"--seconds", "61"}, {"--sessions", "65"}, {"--sessions", "-1"}, {"--sessions", "4x"}} {
		s.contains(s.command(cannot, "bench", args...), args[0]+": a whole number from 1 to 6")
	}
	if _, err := os.Stat(filepath.Join(s.token.Dir, "hsm-id")); err == nil || s.howMany() != 0 {
		t.Fatal("something was made")
	}
	s = faulty(t, "", "C_DestroyObject before CKR_ACTION_PROHIBITED")
	_, stderr := s.bench(wrong)
	s.contains(stderr, "the trial key cannot be destroyed", "remove label=")
}
