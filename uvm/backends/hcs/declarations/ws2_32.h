/* ws2_32.dll (winsock2.h), where the standard library does not know AF_HYPERV, and to wait for many sockets. */
SOCKET WINAPI accept(SOCKET s, struct sockaddr *addr, int *addrlen);
int WINAPI bind(SOCKET s, const struct sockaddr *name, int namelen);
int WINAPI WSAPoll(WSAPOLLFD *fdArray, ULONG fds, INT timeout);
