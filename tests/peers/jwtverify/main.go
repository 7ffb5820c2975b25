// Jwtverify says whether a JWT-SVID is what its reader may trust: signed by a key of
// the JWKS, for this audience and subject, by this issuer, and not expired. It uses
// nothing but Go's standard library, so it shares no code with SPIRE, with the token or
// with the plugin.
//
//	jwtverify -keys keys.json -issuer URL -audience NAME [-subject ID] FILE...
package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"time"
)

type header struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
}

type claims struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience audience `json:"aud"`
	Expiry   int64    `json:"exp"`
}

// audience is a string or a list of them (RFC 7519, 4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(text []byte) error {
	if bytes.HasPrefix(text, []byte{'"'}) {
		*a = make(audience, 1)
		return json.Unmarshal(text, &(*a)[0])
	}
	return json.Unmarshal(text, (*[]string)(a))
}

type jwk struct {
	Kty string `json:"kty"`
	Kid string `json:"kid"`
	Crv string `json:"crv"`
	X   string `json:"x"`
	Y   string `json:"y"`
	N   string `json:"n"`
	E   string `json:"e"`
}

// expected is what the reader of a token wants to see in it; an empty subject is any.
type expected struct {
	issuer, audience, subject string
}

// algorithms are those SPIRE signs with. The key decides which of them may be used with
// it: a token's own word for it is not enough.
var algorithms = map[string]struct {
	kty, crv string
	hash     crypto.Hash
}{
	"RS256": {"RSA", "", crypto.SHA256},
	"ES256": {"EC", "P-256", crypto.SHA256},
	"ES384": {"EC", "P-384", crypto.SHA384},
}

var curves = map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()}

func number(text string) (*big.Int, error) {
	octets, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(octets) == 0 {
		return nil, fmt.Errorf("%q is no base64url number", text)
	}
	return new(big.Int).SetBytes(octets), nil
}

func (k jwk) verifyRSA(hash crypto.Hash, digest, signature []byte) error {
	n, errN := number(k.N)
	e, errE := number(k.E)
	if err := errors.Join(errN, errE); err != nil {
		return err
	}
	key := &rsa.PublicKey{N: n, E: int(e.Int64())}
	return rsa.VerifyPKCS1v15(key, hash, digest, signature)
}

func (k jwk) verifyEC(digest, signature []byte) error {
	x, errX := number(k.X)
	y, errY := number(k.Y)
	if err := errors.Join(errX, errY); err != nil {
		return err
	}
	key := &ecdsa.PublicKey{Curve: curves[k.Crv], X: x, Y: y}
	if _, err := key.ECDH(); err != nil {
		return err // not a point of the curve
	}
	half := (key.Curve.Params().BitSize + 7) / 8
	if len(signature) != 2*half {
		return fmt.Errorf("the signature has %d bytes, not %d", len(signature), 2*half)
	}
	r, s := new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:])
	if !ecdsa.Verify(key, digest, r, s) {
		return errors.New("the signature is wrong")
	}
	return nil
}

func verifySignature(keys []jwk, h header, signed, signature []byte) error {
	algorithm, ok := algorithms[h.Alg]
	if !ok {
		return fmt.Errorf("alg %q is not one of SPIRE's", h.Alg)
	}
	at := slices.IndexFunc(keys, func(k jwk) bool { return k.Kid == h.Kid })
	if h.Kid == "" || at < 0 {
		return fmt.Errorf("no key with kid %q is served", h.Kid)
	}
	key := keys[at]
	if key.Kty != algorithm.kty || key.Crv != algorithm.crv {
		return fmt.Errorf("alg %s with a %s %s key", h.Alg, key.Kty, key.Crv)
	}
	hash := algorithm.hash.New()
	hash.Write(signed)
	if key.Kty == "RSA" {
		return key.verifyRSA(algorithm.hash, hash.Sum(nil), signature)
	}
	return key.verifyEC(hash.Sum(nil), signature)
}

func (c claims) check(want expected, now time.Time) error {
	switch {
	case c.Issuer != want.issuer:
		return fmt.Errorf("iss is %q, not %q", c.Issuer, want.issuer)
	case !slices.Contains(c.Audience, want.audience):
		return fmt.Errorf("aud is %q, without %q", c.Audience, want.audience)
	case want.subject != "" && c.Subject != want.subject:
		return fmt.Errorf("sub is %q, not %q", c.Subject, want.subject)
	case !now.Before(time.Unix(c.Expiry, 0)):
		return fmt.Errorf("expired at %v", time.Unix(c.Expiry, 0).UTC())
	}
	return nil
}

func verify(keys []jwk, token string, want expected, now time.Time) (h header, c claims, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return h, c, fmt.Errorf("a JWT has 3 parts, this has %d", len(parts))
	}
	var octets [3][]byte
	for i, part := range parts {
		if octets[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			return h, c, fmt.Errorf("part %d: %w", i+1, err)
		}
	}
	if err = json.Unmarshal(octets[0], &h); err != nil {
		return h, c, fmt.Errorf("header: %w", err)
	}
	signed := []byte(parts[0] + "." + parts[1])
	if err = verifySignature(keys, h, signed, octets[2]); err != nil {
		return h, c, err
	}
	if err = json.Unmarshal(octets[1], &c); err != nil {
		return h, c, fmt.Errorf("claims: %w", err)
	}
	return h, c, c.check(want, now)
}

func readKeys(path string) ([]jwk, error) {
	var set struct {
		Keys []jwk `json:"keys"`
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return set.Keys, json.Unmarshal(text, &set)
}

func run(path string, keys []jwk, want expected) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	h, c, err := verify(keys, strings.TrimSpace(string(text)), want, time.Now())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	fmt.Printf("%s, kid %s, sub %s, expires %s\n", h.Alg, h.Kid, c.Subject,
		time.Unix(c.Expiry, 0).UTC().Format(time.RFC3339))
	return nil
}

func main() {
	var want expected
	path := flag.String("keys", "", "the JWKS `file`")
	flag.StringVar(&want.issuer, "issuer", "", "the `URL` iss must be")
	flag.StringVar(&want.audience, "audience", "", "the `name` aud must contain")
	flag.StringVar(&want.subject, "subject", "", "the SPIFFE `ID` sub must be")
	flag.Parse()
	keys, err := readKeys(*path)
	if err == nil && flag.NArg() == 0 {
		err = errors.New("no token file named")
	}
	for _, file := range flag.Args() {
		err = errors.Join(err, run(file, keys, want))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "jwtverify:", err)
		os.Exit(1)
	}
}
