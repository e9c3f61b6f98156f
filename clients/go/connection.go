package limbeck

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// DefaultPort is the port of an address that names none.
const DefaultPort = 7411

// Option changes how Connect connects.
type Option func(*settings)

// Token is the bearer token, in itself.
func Token(token string) Option {
	return func(s *settings) { s.token, s.hasToken = token, true }
}

// TokenFile is a file that holds the bearer token, read anew for each call; "" for no token. A byte order mark and final
// newlines are no part of it.
func TokenFile(path string) Option { return func(s *settings) { s.tokenFile = path } }

// TLSCA is a file (PEM) of the authorities that may have signed the server's certificate, in place of the system's.
func TLSCA(path string) Option { return func(s *settings) { s.ca = path } }

// TLSCert is the client's own certificate and its key, both PEM, the key unencrypted.
func TLSCert(cert, key string) Option {
	return func(s *settings) { s.cert, s.key = cert, key }
}

// Insecure lets a connection to another machine do without TLS.
func Insecure() Option { return func(s *settings) { s.insecure = true } }

// Replicas are more addresses of the same server, with one certificate: calls go to all of them in turn, and a lost one
// is passed over.
func Replicas(addresses ...string) Option {
	return func(s *settings) { s.replicas = append(s.replicas, addresses...) }
}

// Timeout is how long a call that asks for one thing may take, and the first contact with a server: 10 seconds, unless
// said otherwise.
func Timeout(d time.Duration) Option { return func(s *settings) { s.times.timeout = d } }

// RetryFor is how long an interrupted stream or download is tried again without an answer: 5 minutes, unless said
// otherwise.
func RetryFor(d time.Duration) Option { return func(s *settings) { s.times.retryFor = d } }

// Liveness changes when a sign of life is sent, where nothing else was for so long (15 seconds), and when a stream that
// nothing comes from is given up and tried again (80 seconds). The server expects the first, and promises 15 seconds.
func Liveness(alive, silence time.Duration) Option {
	return func(s *settings) { s.times.alive, s.times.silence = alive, silence }
}

// Log hears, in one line, of lost connections and of a teacher that starts. It may be called by several goroutines at
// once.
func Log(heard func(line string)) Option { return func(s *settings) { s.log = heard } }

type times struct {
	timeout, retryFor, alive, silence time.Duration
}

// settings are what the options say, then what was made of it.
type settings struct {
	token     string
	hasToken  bool
	tokenFile string
	ca        string
	cert, key string
	insecure  bool
	replicas  []string
	times     times
	log       func(string)

	places   []place
	loopback bool
	tls      *tls.Config // nil: none
}

type place struct {
	host string
	port int
}

func (p place) String() string { return net.JoinHostPort(p.host, strconv.Itoa(p.port)) }

// settle checks everything that can be checked without connecting.
func settle(address string, options []Option) (*settings, error) {
	s := &settings{
		times: times{timeout: 10 * time.Second, retryFor: 5 * time.Minute, alive: 15 * time.Second, silence: 80 * time.Second},
		log:   func(string) {},
	}
	for _, option := range options {
		option(s)
	}
	var problems []Problem
	s.loopback = true
	for _, text := range append([]string{address}, s.replicas...) {
		where, problem := split(text)
		if problem != nil {
			problems = append(problems, *problem)
		}
		s.places = append(s.places, where)
		s.loopback = s.loopback && isLoopback(where.host)
	}
	asked := s.ca != "" || s.cert != "" || s.key != ""
	if s.insecure && asked {
		problems = append(problems, Problem{Message: "Insecure means no TLS, and TLS files are given", Field: "Insecure"})
	}
	if asked || !(s.loopback || s.insecure) {
		problems = append(problems, s.readTLS()...)
	}
	if s.hasToken && s.tokenFile != "" {
		problems = append(problems, Problem{Message: "both a Token and a TokenFile are given", Field: "TokenFile"})
	} else if _, problem := s.currentToken(); problem != nil {
		problems = append(problems, *problem)
	}
	for name, d := range map[string]time.Duration{
		"Timeout": s.times.timeout, "RetryFor": s.times.retryFor,
		"Liveness: alive": s.times.alive, "Liveness: silence": s.times.silence,
	} {
		if d <= 0 {
			problems = append(problems, Problem{Message: fmt.Sprintf("%s is no time to wait", d), Field: name})
		}
	}
	if len(problems) > 0 {
		return nil, wrongConnection(problems...)
	}
	return s, nil
}

func wrongConnection(problems ...Problem) *Error {
	return &Error{Reason: RequestInvalid, Message: "The connection cannot be made like this.", Problems: problems}
}

// name is the addresses, for messages.
func (s *settings) name() string {
	var names []string
	for _, place := range s.places {
		names = append(names, place.String())
	}
	return strings.Join(names, ", ")
}

// outgoing is the context of a call, with the token in its metadata.
func (s *settings) outgoing(ctx context.Context) (context.Context, error) {
	token, problem := s.currentToken()
	if problem != nil {
		return nil, wrongConnection(*problem)
	}
	if token == "" {
		return ctx, nil
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), nil
}

// dial makes the connection; nothing is sent before the first call.
func (s *settings) dial(ctx context.Context) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		// the replicas of a name, or of several addresses, in turn; with one there is nothing to choose
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // calls are repeated here, where it is known what was answered
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
	if s.loopback { // gRPC sends even localhost through a proxy of the environment where NO_PROXY does not name it
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}))
	}
	if s.tls == nil {
		options = append(options, grpc.WithInsecure())
	} else {
		options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(s.tls)))
	}
	target := "passthrough:///" + s.places[0].String()
	if len(s.places) > 1 {
		named := manual.NewBuilderWithScheme("limbeck")
		var addresses []resolver.Address
		for _, place := range s.places {
			addresses = append(addresses, resolver.Address{Addr: place.String()})
		}
		named.InitialState(resolver.State{Addresses: addresses})
		options = append(options, grpc.WithResolvers(named))
		target = "limbeck:///" + s.places[0].String()
	} else if !s.loopback && !proxied(s.places[0]) { // a proxy looks the name up itself
		target = "dns:///" + s.places[0].String()
	}
	return grpc.DialContext(ctx, target, options...)
}

func proxied(where place) bool {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: where.String()}})
	return err != nil || proxy != nil
}

var addressForm = regexp.MustCompile(`^(?:\[([0-9A-Fa-f:.%]+)\]|([^:\s\[\]]+))(?::(.*))?$`)

// split reads host, host:port or [v6]:port.
func split(address string) (place, *Problem) {
	found := addressForm.FindStringSubmatch(strings.TrimSpace(address))
	if found == nil || strings.Contains(address, "/") {
		hint := fmt.Sprintf("give host:port, for example 127.0.0.1:%d or [::1]:%d", DefaultPort, DefaultPort)
		return place{}, &Problem{Message: fmt.Sprintf("%q is no address", address), Field: "address", Hint: hint}
	}
	where := place{host: found[1] + found[2], port: DefaultPort}
	if strings.HasSuffix(strings.TrimSpace(address), ":"+found[3]) {
		number, err := strconv.ParseUint(found[3], 10, 16)
		if err != nil || number == 0 {
			message := fmt.Sprintf("port %s of %q is not one of 1 … 65535", found[3], address)
			return where, &Problem{Message: message, Field: "address"}
		}
		where.port = int(number)
	}
	return where, nil
}

func isLoopback(host string) bool {
	if name := strings.ToLower(host); name == "localhost" || name == "localhost." {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}

// readTLS makes the settings of TLS.
func (s *settings) readTLS() []Problem {
	var problems []Problem
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(s.places) > 1 {
		config.ServerName = s.places[0].host // the replicas' certificate is for the first name
	}
	if s.ca != "" {
		content, problem := read(s.ca, "TLSCA")
		if problem != nil {
			problems = append(problems, *problem)
		} else if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(content) {
			message := "cannot be used: it holds no certificate"
			problems = append(problems, Problem{Message: message, File: s.ca, Field: "TLSCA", Hint: "it is PEM"})
		}
	}
	if s.cert != "" || s.key != "" {
		problems = append(problems, s.readCertificate(config)...)
	}
	s.tls = config
	return problems
}

func (s *settings) readCertificate(config *tls.Config) []Problem {
	var problems []Problem
	contents := [2][]byte{}
	for i, path := range []string{s.cert, s.key} {
		content, problem := read(path, "TLSCert")
		if problem != nil {
			problems = append(problems, *problem)
		}
		contents[i] = content
	}
	if problems != nil {
		return problems
	}
	own, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		message := fmt.Sprintf("certificate and key cannot be used: %s", err)
		hint := "both are PEM, the key unencrypted"
		return []Problem{{Message: message, File: s.cert, Field: "TLSCert", Hint: hint}}
	}
	config.Certificates = []tls.Certificate{own}
	return nil
}

func read(path, field string) ([]byte, *Problem) {
	content, err := os.ReadFile(path)
	if err == nil {
		return content, nil
	}
	var failed *fs.PathError
	if errors.As(err, &failed) {
		err = failed.Err
	}
	return nil, &Problem{Message: fmt.Sprintf("cannot be read: %s", err), File: path, Field: field}
}

// currentToken is the token as it is now; empty where none is asked for.
func (s *settings) currentToken() (string, *Problem) {
	if s.hasToken {
		return cleanToken(s.token, "Token", "")
	}
	if s.tokenFile == "" {
		return "", nil
	}
	content, problem := read(s.tokenFile, "TokenFile")
	if problem != nil {
		return "", problem
	}
	if !utf8.Valid(content) {
		return "", &Problem{Message: "is not text in UTF-8", File: s.tokenFile, Field: "TokenFile"}
	}
	return cleanToken(string(bytes.TrimPrefix(content, []byte("\ufeff"))), "TokenFile", s.tokenFile)
}

var lineEnd = regexp.MustCompile(`\r\n|\r|\n`)

// cleanToken is the token without what editors add. Its value is never in a message.
func cleanToken(text, field, file string) (string, *Problem) {
	text = strings.TrimSpace(strings.TrimPrefix(text, "\ufeff"))
	problem := &Problem{File: file, Field: field}
	if text == "" {
		problem.Message = "holds no token"
		return "", problem
	}
	if lines := len(lineEnd.Split(text, -1)); lines > 1 {
		problem.Message = fmt.Sprintf("holds %d lines, 1 is allowed", lines)
		return "", problem
	}
	for i, sign := range []rune(text) {
		if sign < '!' || sign > '~' {
			problem.Message = fmt.Sprintf("sign %d of the token is a blank or no visible ASCII", i+1)
			return "", problem
		}
	}
	return text, nil
}
