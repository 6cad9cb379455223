<?php
/*
 * Arcangelo for PHP: runs a userspace script that sets $ARCANGELO_USERSPACE to a table of callables on_init, on_start,
 * on_handle and on_stop. on_init is called once, on_start and on_stop around each request; what on_handle returns is the
 * answer. The script finds the request in arca::$request, and who asks in the other static variables of arca.
 *
 * php shell.php SCRIPT, with requests on file descriptor 3 and answers on 4, so that echo harms nothing. All integers are
 * in host order. Answers carry the number of their request, and nobody but this process gives any: a child that comes back
 * from the script ends.
 */

final class arca
{
    /** Number of the exchange: 8 bytes. */
    public static $guid = "\0\0\0\0\0\0\0\0";
    /** Who asks. */
    public static $client_ip = '255.255.255.255';
    public static $client_port = 65536;
    /** The session's token: 16 bytes. */
    public static $token = 'AAAAAAAAAAAAAAAA';
    /** What is asked. */
    public static $request = '';

    /** A line for the server's log. */
    public static function log($string)
    {
        fwrite(STDERR, '[ARCA ' . date('d/M/Y:H:i:s O') . '] ' . $string . "\n");
    }
}

/* Everything of the shell's own is in here, so that a script's global variables meet none of ours. */
final class arcangelo_shell
{
    private const START = 1;
    private const QUIT = 2;
    private const HANDLE = 3;
    private const PROBE = 16;

    private const START_OK = "\x01";
    private const START_FAILED = "\x02";
    private const QUIT_OK = "\x03";
    private const HANDLE_OK = "\x04";
    private const HANDLE_FAILED = "\x05";

    private const NUMBERED = 0x80;
    private const MAX_ANSWER = 1048576;
    private const READ_SIZE = 262144;

    private static $in;
    private static $out;
    private static $buffer = '';
    private static $at = 0;
    private static $answers = '';
    private static $started = false;
    private static $owner = 0;

    public static function open()
    {
        set_error_handler(function ($number, $text, $file, $line) {
            if (error_reporting() & $number) {
                arca::log("PHP: $text ($file:$line)");
            }
            return true;
        });
        self::$in = fopen('php://fd/3', 'rb');
        self::$out = fopen('php://fd/4', 'wb');
        if (!self::$in || !self::$out) {
            arca::log('file descriptors 3 and 4 are not there');
            exit(1);
        }
        self::$owner = getmypid();
        stream_set_read_buffer(self::$in, 0);
        stream_set_write_buffer(self::$out, 0);
        stream_set_chunk_size(self::$in, self::READ_SIZE);
        register_shutdown_function([self::class, 'flush']);
    }

    public static function check_userspace($userspace, $path)
    {
        if (!is_array($userspace) || !isset($userspace['on_handle']) || !is_callable($userspace['on_handle'])) {
            arca::log("$path does not set \$ARCANGELO_USERSPACE with a callable on_handle");
            exit(1);
        }
        if (isset($userspace['on_init'])) {
            $userspace['on_init']();
        }
        self::leave_if_child();
    }

    /* The end of a child that comes back from the script: it is not the one who answers. */
    private static function leave_if_child()
    {
        if (getmypid() !== self::$owner) {
            exit(0);
        }
    }

    /* One request's limits and alarms do not end a later one. */
    private static function stop_alarms()
    {
        set_time_limit(0);
        if (function_exists('pcntl_alarm')) {
            pcntl_alarm(0);
        }
    }

    private static function put($answer)
    {
        self::$answers .= chr(ord($answer[0]) | self::NUMBERED) . arca::$guid . substr($answer, 1);
    }

    public static function serve($userspace)
    {
        while (true) {
            $type = ord(self::take(1));
            if ($type === self::PROBE) {
                self::$answers .= chr(self::PROBE);
                continue;
            }
            arca::$guid = self::take(8);
            switch ($type) {
                case self::START:
                    self::read_context(self::take(self::number()));
                    self::$started = self::guarded($userspace, 'on_start', $nothing);
                    self::put(self::$started ? self::START_OK : self::START_FAILED);
                    break;
                case self::HANDLE:
                    arca::$request = self::take(self::number());
                    self::handle($userspace);
                    arca::$request = '';
                    break;
                case self::QUIT:
                    if (self::$started) {
                        self::guarded($userspace, 'on_stop', $nothing);
                    }
                    self::$started = false;
                    self::stop_alarms();
                    self::put(self::QUIT_OK);
                    break;
                default:
                    arca::log("unknown request type $type");
                    exit(1);
            }
        }
    }

    private static function handle($userspace)
    {
        $answer = '';
        if (self::$started && self::guarded($userspace, 'on_handle', $answer)) {
            if (($answer === null || is_scalar($answer)) && strlen((string) $answer) <= self::MAX_ANSWER) {
                $answer = (string) $answer;
                self::put(self::HANDLE_OK . pack('L', strlen($answer)) . $answer);
                return;
            }
            arca::log('on_handle must return a string of at most 1 MiB');
        }
        self::put(self::HANDLE_FAILED);
    }

    /* Whether the callable came back without an exception; its result goes into $result. */
    private static function guarded($userspace, $name, &$result)
    {
        try {
            $result = isset($userspace[$name]) ? $userspace[$name]() : null;
            return true;
        } catch (Throwable $problem) {
            arca::log("uncaught in $name: $problem");
            return false;
        } finally {
            self::leave_if_child();
        }
    }

    /* A socket address as in memory (IPv4: 16 bytes, IPv6: 28), then the token (16). */
    private static function read_context($data)
    {
        arca::$client_port = unpack('n', $data, 2)[1];
        arca::$client_ip = inet_ntop(strlen($data) === 32 ? substr($data, 4, 4) : substr($data, 8, 16));
        arca::$token = substr($data, -16);
    }

    private static function number()
    {
        return unpack('L', self::take(4))[1];
    }

    /* Exactly so many bytes. Answers leave when there is nothing left to read, so that one exchange is one write. */
    private static function take($size)
    {
        while (strlen(self::$buffer) - self::$at < $size) {
            self::flush();
            $data = fread(self::$in, self::READ_SIZE);
            if ($data === false || $data === '') {
                exit(0);
            }
            self::$buffer = self::$at < strlen(self::$buffer) ? substr(self::$buffer, self::$at) . $data : $data;
            self::$at = 0;
        }
        $taken = substr(self::$buffer, self::$at, $size);
        self::$at += $size;
        return $taken;
    }

    /* Also called when the script exits: an answer that was given before that counts. */
    public static function flush()
    {
        if (getmypid() !== self::$owner) {
            return;
        }
        while (self::$answers !== '') {
            $written = fwrite(self::$out, self::$answers);
            if ($written === false) {
                self::$answers = '';
                exit(1);
            }
            self::$answers = $written === strlen(self::$answers) ? '' : substr(self::$answers, $written);
        }
    }
}

arcangelo_shell::open();
require $argv[1];
arcangelo_shell::check_userspace($ARCANGELO_USERSPACE ?? null, $argv[1]);
arcangelo_shell::serve($ARCANGELO_USERSPACE);
