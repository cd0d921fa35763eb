# An ordinary program: answers HTTP on 127.0.0.1, at the port that its argument names.
use strict;
use warnings;
use IO::Socket::INET;

my $port = shift // die "usage: orders.pl PORT\n";
my $server = IO::Socket::INET->new(
    LocalAddr => '127.0.0.1',
    LocalPort => $port,
    Listen    => 16,
    ReuseAddr => 1,
) or die "cannot listen on 127.0.0.1:$port: $@\n";

local $SIG{PIPE} = 'IGNORE';
my $served = 0;
while (my $client = $server->accept) {
    local $SIG{ALRM} = sub { shutdown $client, 2 };
    alarm 5;    # nobody keeps the only seat
    while (defined(my $line = <$client>)) {
        last if $line =~ /^\r?\n$/;
    }
    $served++;
    my $body = "order 1: three lemons\norder 2: a ladder\n"
      . "served by the orders program on machine db, answer $served\n";
    print $client "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: "
      . length($body) . "\r\nConnection: close\r\n\r\n$body";
    alarm 0;
    close $client;
}
