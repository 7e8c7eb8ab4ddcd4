//! End-to-end stories: real TLS, real WireGuard over loopback UDP, real llama.cpp. One module a subject, one test a story.

mod accounts;
mod answer;
mod auth;
mod carrier;
mod chaos;
mod cold;
mod continuity;
mod drain;
mod enrolment;
mod failing;
mod hostile;
mod house;
mod input;
mod lifecycle;
mod limits;
mod management;
mod media;
mod migration;
mod outage;
mod outside;
mod quotas;
mod stores;
mod unmanaged;
mod warm;
