# An ordinary program: asks for the orders at the address in its environment, and says what came.
use strict;
use warnings;
use IO::Socket::INET;

$| = 1;
my $address = $ENV{DB_ADDRESS} // die "DB_ADDRESS is not set\n";
while (1) {
    my $server = IO::Socket::INET->new(PeerAddr => $address, Timeout => 5);
    if ($server) {
        print $server "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
        my ($head, $body) = split /\r\n\r\n/, join('', <$server>), 2;
        print "from $address: ", $body // "nothing\n";
        close $server;
    }
    else {
        print "from $address: no answer: $@\n";
    }
    sleep 60;
}
