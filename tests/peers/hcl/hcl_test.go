// Package hcl_test holds our HCL reader against hashicorp/hcl v1: whatever we accept, it
// must accept and read as the same values, on the same lines. (Not the other way round: we
// refuse what we have no use for.)
package hcl_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/token"
)

const batchSize = 200

// ours is tests/support/hcl_dump.c; the protocol is described there.
type ours struct {
	in  *bufio.Writer
	out *bufio.Reader
}

func start(t *testing.T) *ours {
	path := os.Getenv("HCL_DUMP")
	if path == "" {
		t.Fatal("HCL_DUMP must name build/tests/support/hcl_dump")
	}
	command := exec.Command(path)
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := command.Wait(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	})
	return &ours{bufio.NewWriter(in), bufio.NewReader(out)}
}

func (o *ours) send(texts []string) {
	number := func(n int) { binary.Write(o.in, binary.BigEndian, uint32(n)) }
	number(len(texts))
	for _, text := range texts {
		number(len(text))
		o.in.WriteString(text)
	}
	o.in.Flush()
}

func (o *ours) receive(t *testing.T) string {
	var length uint32
	if err := binary.Read(o.out, binary.BigEndian, &length); err != nil {
		t.Fatalf("hcl_dump: %v", err)
	}
	reply := make([]byte, length)
	if _, err := io.ReadFull(o.out, reply); err != nil {
		t.Fatalf("hcl_dump: %v", err)
	}
	return string(reply)
}

// reader prints what hashicorp/hcl v1 made of a text as hcl_dump prints ours.
type reader struct {
	strings.Builder
	json bool
}

func (r *reader) text(s string) {
	r.WriteByte('"')
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			fmt.Fprintf(r, "\\u%04x", c)
		} else {
			r.WriteByte(c)
		}
	}
	r.WriteByte('"')
}

func (r *reader) key(key *ast.ObjectKey) {
	r.text(key.Token.Value().(string))
}

func (r *reader) item(item *ast.ObjectItem) {
	line := 0 // in JSON, hcl v1 forgets where keys stand
	if !r.json {
		line = item.Keys[0].Pos().Line
	}
	fmt.Fprintf(r, "[%d,", line)
	r.key(item.Keys[0])
	switch len(item.Keys) {
	case 1:
		r.WriteString(",null,")
	case 2:
		r.WriteByte(',')
		r.key(item.Keys[1])
		r.WriteByte(',')
	default:
		panic("more than two keys")
	}
	r.value(item.Val)
	r.WriteByte(']')
}

func (r *reader) literal(t token.Token) {
	switch value := t.Value().(type) {
	case bool:
		r.WriteString(strconv.FormatBool(value))
	case int64:
		r.WriteString(strconv.FormatInt(value, 10))
	case float64:
		fmt.Fprintf(r, `{"float":"%016x"}`, math.Float64bits(value))
	case string:
		r.text(value)
	}
}

func (r *reader) list(open string, length int, each func(i int), end string) {
	r.WriteString(open)
	for i := 0; i < length; i++ {
		if i > 0 {
			r.WriteByte(',')
		}
		each(i)
	}
	r.WriteString(end)
}

func (r *reader) value(node ast.Node) {
	switch node := node.(type) {
	case *ast.LiteralType:
		r.literal(node.Token)
	case *ast.ListType:
		r.list("[", len(node.List), func(i int) { r.value(node.List[i]) }, "]")
	case *ast.ObjectType:
		r.value(node.List)
	case *ast.ObjectList:
		r.list(`{"block":[`, len(node.Items), func(i int) { r.item(node.Items[i]) }, "]}")
	default:
		panic(fmt.Sprintf("a %T", node))
	}
}

// theirs is "+" and the tree or, when hashicorp/hcl v1 fails or panics, "-" and why.
func theirs(text string) (reply string) {
	defer func() {
		if reason := recover(); reason != nil {
			reply = fmt.Sprint("-panic: ", reason)
		}
	}()
	var node ast.Node
	if err := hcl.Decode(&node, text); err != nil {
		return "-" + err.Error()
	}
	r := reader{json: strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "{")}
	r.value(node)
	return "+" + r.String()
}

type tally struct {
	texts, accepted, json int
}

// compare runs one batch and returns which of it we accepted.
func compare(t *testing.T, o *ours, texts []string, sum *tally) []string {
	var accepted []string
	sent := make(chan struct{})
	go func() {
		o.send(texts)
		close(sent)
	}()
	defer func() { <-sent }()
	for _, text := range texts {
		reply := o.receive(t)
		sum.texts++
		if !strings.HasPrefix(reply, "+") {
			continue
		}
		accepted = append(accepted, text)
		sum.accepted++
		if strings.HasPrefix(strings.TrimSpace(text), "{") {
			sum.json++
			if !json.Valid([]byte(text)) {
				t.Errorf("we take this for JSON: %q", text)
			}
		}
		if other := theirs(text); other != reply {
			t.Errorf("disagreement about %q\nours:   %s\ntheirs: %s", text, reply, other)
		}
	}
	return accepted
}

func readCorpus(t *testing.T) (texts []string) {
	paths, err := filepath.Glob("../../corpus/*/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if kind := filepath.Base(filepath.Dir(path)); kind != "hcl" && kind != "config" {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(filepath.Dir(path)) == "config" {
			text = text[1:] // the first byte says for which plugin
		}
		texts = append(texts, string(text))
	}
	if len(texts) == 0 {
		t.Fatal("no corpus")
	}
	return texts
}

func TestTheCorpusReadsAsHashicorpReadsIt(t *testing.T) {
	var sum tally
	compare(t, start(t), readCorpus(t), &sum)
	t.Logf("%d texts, %d accepted, %d of them JSON", sum.texts, sum.accepted, sum.json)
	if sum.accepted == 0 || sum.json == 0 {
		t.Error("too little was accepted for this to say anything")
	}
}

func pick(random *rand.Rand, from []string) string {
	return from[random.Intn(len(from))]
}

// pieces are what HCL is made of, and what has ever been read in two ways.
var pieces = []string{
	"{", "}", "[", "]", ",", "=", ":", " ", "  ", "\t", "\n", "\r\n", "\r", "\n\n", "\v", "\f",
	"#", "//", "/*", "*/", "/**/", "/*/", "# c\n", "// c\r\n", "/* a\n b */", "\"", "\\", "$", "${",
	"$${", "${x}", "{{", "}}", "a", "b.c", "d-e", "_f", "true", "false", "null", "trueish", "a = 1",
	"\"q\"", "\"\"", "\"\\\"\"", "\"\\n\"", "\\u00e9", "\\ud83d\\ude00", "\\U0001F511", "\\x41",
	"\\xff", "\\377", "\\400", "\\0", "\\101", "\\/", "\\a", "\\v", "\\u0000", "\\'", "\\uD800",
	"0", "00", "0644", "08", "0x1F", "0X", "0b1", "0o17", "1_000", "-1", "-", "+1", "--1", "-0x1f",
	"1.5", "1.", ".5", "-1.50", "1e3", "1E-3", "1e", "1e+", "01.5", "0e1", "1e400", "1e-400",
	"9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
	"<<", "<<-", "<<EOF\n", "<<-EOF\n", "EOF\n", "  EOF\n", "\tEOF\n", "EOF", " EOF\r\n", "-EOF\n",
	"    text\n", "  text\n", "\u00e9", "\u00a0", "\ufeff", "\ue123", "\xff", "\x00", "\U0001F511",
	"\"o\" \"k\" {", "x \"y\" {\n", "x = {\n", "[1, 2.5, \"s\", true]", "[\"a\",\n\"b\",\n]", "[{", "}]", "[{}]", "[{a=1},\n{}]", "},{",
}

func number(random *rand.Rand) string {
	switch random.Intn(6) {
	case 0:
		return fmt.Sprintf("0x%x", random.Int31())
	case 1:
		return fmt.Sprintf("0%o", random.Int31())
	case 2:
		return strconv.FormatFloat(random.NormFloat64()*1000, pick(random, []string{"e", "f", "g"})[0], random.Intn(20)-1, 64)
	case 3:
		return strconv.FormatInt(-random.Int63(), 10)
	default:
		return strconv.Itoa(random.Intn(1000))
	}
}

func quoted(random *rand.Rand) string {
	var s strings.Builder
	for i := random.Intn(6); i > 0; i-- {
		s.WriteString(pick(random, []string{"a", " ", "é", "{", "}", "$", "\\\\", "\\\"", "\\n", "\\t", "\\u00fc",
			"\\U0001F511", "\\x41", "\\303\\251", "/", "pkcs11:token=x", "0644", "\t", "#", "'", "=", "\\b"}))
	}
	return `"` + s.String() + `"`
}

func heredoc(random *rand.Rand) string {
	end := pick(random, []string{"\n", "\n", "\r\n"})
	s := pick(random, []string{"<<", "<<-"}) + "E1" + end
	for i := random.Intn(4); i > 0; i-- {
		s += pick(random, []string{"", " ", "  ", "\t", "    "}) + pick(random, []string{"", "line", "\"x\" \\n", "E2", "E1 "}) + end
	}
	return s + pick(random, []string{"", " ", "  ", "\t", " \v"}) + "E1" + end
}

func scalar(random *rand.Rand) string {
	switch random.Intn(8) {
	case 0:
		return pick(random, []string{"true", "false"})
	case 1, 2:
		return number(random)
	case 3:
		return heredoc(random)
	default:
		return quoted(random)
	}
}

func gap(random *rand.Rand) string {
	return pick(random, []string{"", " ", " ", " ", "\n", "\r\n", "\t", " # c\n", "// c\n", "/* c */", "/*\n*/"})
}

func items(random *rand.Rand, depth int) string {
	var s strings.Builder
	for i := random.Intn(5); i > 0; i-- {
		s.WriteString(gap(random) + pick(random, []string{"a", "b", "key", "d.e", "f-g", `"q"`, `"\u00e9"`, "_"}))
		switch kind := random.Intn(8); {
		case kind == 0 && depth > 0:
			s.WriteString(gap(random) + pick(random, []string{"", "=", ` "label"`, " label"}) + gap(random) + "{" + items(random, depth-1) + "}")
		case kind == 1:
			s.WriteString(gap(random) + "=" + gap(random) + "[")
			for j := random.Intn(4); j > 0; j-- {
				element := scalar(random)
				if depth > 0 && random.Intn(4) == 0 {
					element = "{" + items(random, depth-1) + "}"
				}
				s.WriteString(gap(random) + element + gap(random) + pick(random, []string{",", ",", ",", ""}))
			}
			s.WriteString(gap(random) + "]")
		default:
			s.WriteString(gap(random) + "=" + gap(random) + scalar(random))
		}
		s.WriteString(pick(random, []string{"\n", "\n", "\n", "\r\n", ",", " ", ""}))
	}
	return s.String() + gap(random)
}

func jsonValue(random *rand.Rand, depth int) any {
	switch random.Intn(7) {
	case 0:
		return random.Intn(2) == 0
	case 1:
		return json.Number(pick(random, []string{"0", "-1", "1.5", "1e3", "-0", "12E-2", "9223372036854775807", "0.5"}))
	case 2:
		list := []any{}
		for i := random.Intn(3); i > 0; i-- {
			list = append(list, jsonValue(random, 0))
		}
		return list
	case 3:
		if depth > 0 {
			object := map[string]any{}
			for i := random.Intn(4); i > 0; i-- {
				object[pick(random, []string{"a", "b", "c", "é", "x\"y"})] = jsonValue(random, depth-1)
			}
			return object
		}
	}
	return pick(random, []string{"", "a", "é", "\u0007", "a\nb", "\\", "${", "$", "{", "<", "\U0001F511"})
}

func generate(random *rand.Rand) string {
	if random.Intn(4) > 0 {
		return items(random, 3)
	}
	object := map[string]any{"k": jsonValue(random, 3), "l": jsonValue(random, 3)}
	text, err := json.MarshalIndent(object, "", pick(random, []string{"", "  "}))
	if err != nil {
		panic(err)
	}
	return string(text)
}

func mutate(random *rand.Rand, text string, all []string) string {
	for i := 1 + random.Intn(3); i > 0; i-- {
		from := random.Intn(len(text) + 1)
		to := min(len(text), from+random.Intn(6))
		switch random.Intn(6) {
		case 0:
			text = text[:from] + text[to:]
		case 1, 2:
			text = text[:from] + pick(random, pieces) + text[from:]
		case 3:
			text = text[:from] + pick(random, pieces) + text[to:]
		case 4:
			other := pick(random, all)
			cut := random.Intn(len(other) + 1)
			text = text[:from] + other[cut:min(len(other), cut+20)] + text[from:]
		default:
			if from < len(text) {
				text = text[:from] + string([]byte{byte(random.Intn(256))}) + text[from+1:]
			}
		}
	}
	return text
}

func duration(t *testing.T) time.Duration {
	text := os.Getenv("FUZZ_SECONDS")
	if text == "" {
		return 10 * time.Second
	}
	seconds, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("FUZZ_SECONDS: %v", err)
	}
	return time.Duration(seconds) * time.Second
}

func seed(t *testing.T) int64 {
	if text := os.Getenv("FUZZ_SEED"); text != "" {
		number, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatalf("FUZZ_SEED: %v", err)
		}
		return number
	}
	return time.Now().UnixNano()
}

func TestGeneratedAndMutatedTextsReadAsHashicorpReadsThem(t *testing.T) {
	var sum tally
	o := start(t)
	number := seed(t)
	random := rand.New(rand.NewSource(number))
	pool := readCorpus(t)
	for end := time.Now().Add(duration(t)); time.Now().Before(end) && !t.Failed(); {
		texts := make([]string, batchSize)
		for i := range texts {
			if random.Intn(3) == 0 {
				texts[i] = generate(random)
			} else {
				texts[i] = mutate(random, pick(random, pool), pool)
			}
		}
		// What was accepted is worth changing further.
		for _, text := range compare(t, o, texts, &sum) {
			if len(text) > 2000 {
				continue
			}
			if len(pool) < 2000 {
				pool = append(pool, text)
			} else {
				pool[random.Intn(len(pool))] = text
			}
		}
	}
	t.Logf("FUZZ_SEED=%d: %d texts, %d accepted, %d of them JSON", number, sum.texts, sum.accepted, sum.json)
	if sum.accepted*20 < sum.texts || sum.json == 0 {
		t.Error("too little was accepted for this to say anything")
	}
}
